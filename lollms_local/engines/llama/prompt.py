"""A request to a prompt: messages by the template, tokens, and the grammar that the answer must follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedRequest
from ...modalities.chat import ChatOptions, ChatRequest
from .schema import schema_grammar
from .stream import opened_thought
from .template import ChatTemplate, flat_messages
from .tools import CALL_MARKS, call_schema, checked_tools, tools_prompt
from .vocabulary import Tokens

__all__ = ["Prompt", "PromptBuilder"]

#: tokens that a constrained answer may take where the caller did not say; its grammar ends before
DEFAULT_JSON_BUDGET = 4096


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        text: the whole prompt.
        tokens: the same in tokens.
        raw: it was given as it stands.
        closing: mark that ends the thought in which it leaves off.
        tools: functions that the answer may call.
        call_marks: texts that begin a call; "" = the whole answer is one.
    """

    text: str
    tokens: list[int]
    raw: bool
    closing: str
    tools: Sequence[Mapping[str, Any]]
    call_marks: tuple[str, ...] = ()
    gbnf: str = ""
    schema: Mapping[str, Any] | None = None

    def grammar(self, budget: int) -> str:
        """GBNF for an answer of at most `budget` tokens; "" = free."""
        if self.schema is None:
            return self.gbnf
        return schema_grammar(self.schema, min(budget, DEFAULT_JSON_BUDGET))


class PromptBuilder:
    """Builds prompts for one model.

    Args:
        tokens: its vocabulary.
        source: its chat template; "" = ChatML.
    """

    def __init__(self, tokens: Tokens, source: str) -> None:
        self._tokens = tokens
        self.template = ChatTemplate(source, tokens.text_of(tokens.bos), tokens.text_of(tokens.eos))

    def build(
        self,
        request: ChatRequest,
        options: ChatOptions,
        live_text: tuple[str, list[int]] | None = None,
        image_mark: str = "",
    ) -> Prompt:
        """The prompt of a request.

        Args:
            live_text: text and tokens of what the cache holds; a prompt that goes on from there keeps those tokens.
            image_mark: stands for each image in the prompt's text; "" = images are left out. A prompt without messages
                has them before its text.

        Raises:
            UnsupportedRequest: the request contradicts itself or the template refuses it.
        """
        if (request.messages is None) == (request.prompt is None):
            raise UnsupportedRequest("A request has either messages or a prompt.")
        tools = [] if request.tool_choice == "none" else checked_tools(request.tools)
        if request.prompt is not None:
            text = image_mark * len(request.images) + request.prompt
        else:
            text = self._rendered(request, options, tools, image_mark)
        schema = request.json_schema
        if tools and request.tool_choice != "auto":
            schema = call_schema(tools, request.tool_choice)
        if schema is not None and request.grammar:
            raise UnsupportedRequest("A request has either a grammar or a JSON schema.")
        raw = request.messages is None
        closing = "" if raw or schema is not None or request.grammar else opened_thought(text)
        marks = () if not tools else CALL_MARKS if request.tool_choice == "auto" else ("",)
        return Prompt(text, self._split(text, live_text), raw, closing, tools, marks, request.grammar or "", schema)

    def _rendered(
        self, request: ChatRequest, options: ChatOptions, tools: Sequence[Mapping[str, Any]], image_mark: str
    ) -> str:
        messages = flat_messages(request.messages or (), image_mark)
        if tools and not self.template.knows_tools:
            words = tools_prompt(tools)
            if messages[0]["role"] == "system":
                messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{words}"}
            else:
                messages.insert(0, {"role": "system", "content": words})
        variables: dict[str, Any] = {"enable_thinking": options.think, "thinking": options.think}
        if options.reasoning_effort and options.think:
            variables["reasoning_effort"] = options.reasoning_effort
        variables.update(request.template_kwargs)
        text = self.template.render(messages, tools=tools, **variables)
        constrained = request.json_schema is not None or bool(request.grammar)
        open_mark = opened_thought(text) if constrained else ""
        return text + open_mark + "\n" if open_mark else text  # a constrained answer cannot begin within a thought

    def _split(self, text: str, live: tuple[str, list[int]] | None) -> list[int]:
        if live is not None and text.startswith(live[0]):
            rest = self._tokens.tokenize(text[len(live[0]) :])
            # only at a border that no token crosses: what follows begins with markup
            if rest and self._tokens.is_control(rest[0]):
                return [*live[1], *rest]
        tokens = self._tokens.tokenize(text)
        if self._tokens.adds_bos and tokens[:1] != [self._tokens.bos]:
            tokens.insert(0, self._tokens.bos)
        return tokens
