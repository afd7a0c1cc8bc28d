"""Messages to a prompt: the model's own chat template, run in a sandbox."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import GenerationError, UnsupportedRequest

__all__ = ["ChatTemplate", "flat_messages"]

#: for files without a template: ChatML, which most instruction models have seen
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
#: a template may multiply strings; none needs one longer than this
MAX_PRODUCT = 1 << 20


@functools.lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """No attributes of Python's own objects, no change of what is passed in, no giant products."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or any(isinstance(x, (str, list, tuple, bytes)) for x in (left, right)):
                sizes = [len(x) if isinstance(x, (str, list, tuple, bytes)) else abs(int(x)) for x in (left, right)]
                if sizes[0] * sizes[1] > MAX_PRODUCT or (operator == "**" and sizes[1] > 64):
                    raise UnsupportedRequest("The model's chat template wants to build a giant value.")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters["fromjson"] = json.loads
    environment.globals.update(raise_exception=_raise, strftime_now=_now)
    return environment


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **ignored: Any) -> str:
    """As transformers has it: without the HTML escapes of Jinja's own."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


#: what a template can raise besides Jinja's own errors (its security error is one of those)
_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _TemplateSaysNo(Exception):
    """A template's own `raise_exception`."""


def _raise(message: str) -> str:
    raise _TemplateSaysNo(message)


class ChatTemplate:
    """A model's chat template.

    Args:
        source: Jinja text; "" = ChatML.
        bos, eos: how the vocabulary spells the first and the last token.
    """

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        self.source = source or CHATML
        self._bos, self._eos = bos, eos

    @property
    def knows_tools(self) -> bool:
        return "tools" in self.source

    @property
    def knows_thinking(self) -> bool:
        return any(word in self.source for word in ("enable_thinking", "<think>", "reasoning_effort", "[THINK]"))

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), **variables: Any
    ) -> str:
        """The prompt up to where the answer begins.

        Args:
            messages: role and content (text); an assistant message at the end is continued.
            tools: functions for templates that know them.
            variables: further variables of the template.

        Raises:
            UnsupportedRequest: the template refuses these messages; says what it said.
        """
        messages = [dict(m) for m in messages]
        continued = messages and messages[-1]["role"] == "assistant"
        try:
            return self._rendered(messages, tools, variables, continued=bool(continued))
        except _TemplateSaysNo as first:
            easier = _without_system(messages)  # Gemma and some Mistral templates refuse a system message
            if easier == messages:
                raise UnsupportedRequest(f"The model's chat template refuses these messages: {first}.") from first
            try:
                return self._rendered(easier, tools, variables, continued=bool(continued))
            except _TemplateSaysNo as second:
                raise UnsupportedRequest(f"The model's chat template refuses these messages: {second}.") from second

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        *,
        continued: bool,
    ) -> str:
        from jinja2 import TemplateError

        values = {
            "bos_token": self._bos,
            "eos_token": self._eos,
            "tools": list(tools) or None,
            **variables,
            "add_generation_prompt": not continued,
        }
        try:
            template = _compiled(self.source)
            if not continued:
                return str(template.render(messages=messages, **values))
            # render with a mark in place of the last answer's end, and stop where the mark is
            mark = "\u241eend\u241e"
            marked = [*messages[:-1], {**messages[-1], "content": str(messages[-1]["content"]) + mark}]
            return str(template.render(messages=marked, **values)).split(mark, 1)[0]
        except (TemplateError, *_FAULTS) as exc:
            # whatever a template does wrong, it is the file's text that is wrong, not this code
            raise GenerationError(
                f"The model's chat template failed: {exc}.", hint="Use raw=True, or another conversion of this model."
            ) from exc


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


def _without_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The system message put in front of the first user message."""
    if not messages or messages[0]["role"] != "system":
        return [dict(m) for m in messages]
    system, rest = messages[0]["content"], [dict(m) for m in messages[1:]]
    first = next((m for m in rest if m["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": system}, *rest]
    first["content"] = f"{system}\n\n{first['content']}"
    return rest


def flat_messages(messages: Sequence[Mapping[str, Any]], image_mark: str = "") -> list[dict[str, Any]]:
    """Messages whose contents are plain texts: templates of text models cannot read lists of parts.

    Args:
        messages: in the OpenAI form; a content is a text, a list of parts or nothing.
        image_mark: stands for an image part.

    Raises:
        UnsupportedRequest: a message is not of that form.
    """
    flat = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UnsupportedRequest(f"Message {number} has no role; it is {message!r:.80}.")
        flat.append({**message, "content": _text_of(message.get("content"), image_mark)})
    if not flat:
        raise UnsupportedRequest("There are no messages to answer.")
    return flat


def _text_of(content: Any, image_mark: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return str(content)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") in ("text", "input_text"):
            texts.append(str(part.get("text", "")))
        elif isinstance(part, Mapping) and part.get("type") in ("image_url", "image"):
            texts.append(image_mark)
    return "\n".join(t for t in texts if t)
