"""Function calls: telling a model which there are, and reading from its answer which it wants."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UnsupportedRequest
from ...modalities.chat import ToolCall

__all__ = ["CALL_MARKS", "call_schema", "checked_tools", "parse_calls", "tools_prompt"]

#: texts that begin a call
CALL_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(\[.*\]|\{.*\})", re.DOTALL)


def checked_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools in the OpenAI form; the bare inner form (name, parameters) is accepted too.

    Raises:
        UnsupportedRequest: one has no name.
    """
    checked = []
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UnsupportedRequest(
                f"Tool {number} has no name.",
                hint='Use {"type": "function", "function": {"name", "description", "parameters"}}.',
            )
        checked.append({"type": "function", "function": dict(function)})
    return checked


def tools_prompt(tools: Sequence[Mapping[str, Any]]) -> str:
    """Words for the system message of a model whose template does not know tools (the Hermes form)."""
    signatures = "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
    return (
        "You may call functions. These are their signatures:\n<tools>\n"
        f"{signatures}\n</tools>\n"
        'To call one, answer with <tool_call>{"name": <name>, "arguments": <object>}</tool_call> and nothing else.'
    )


def call_schema(tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
    """A schema that one call must follow, for "required" or a function's name.

    Raises:
        UnsupportedRequest: there is no function of that name.
    """
    functions = [t["function"] for t in tools]
    if choice != "required":
        functions = [f for f in functions if f["name"] == choice]
        if not functions:
            names = ", ".join(t["function"]["name"] for t in tools) or "none"
            raise UnsupportedRequest(f"tool_choice={choice!r} names no tool.", hint=f"The tools are: {names}.")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": f["name"]},
                "arguments": f.get("parameters") or {"type": "object", "properties": {}},
            },
            "required": ["name", "arguments"],
        }
        for f in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def parse_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[ToolCall, ...]]:
    """The answer without its calls, and the calls of known functions.

    Read are the forms of Hermes and Qwen (<tool_call>), Mistral ([TOOL_CALLS]) and Llama 3 (a bare JSON object). A call
    of an unknown function, or one that is not JSON, stays in the text.
    """
    names = {t["function"]["name"] for t in tools}
    if not names:
        return text, ()
    calls: list[ToolCall] = []

    def take(match: re.Match[str]) -> str:
        found = _read(match[1], names)
        calls.extend(found)
        return "" if found else match[0]

    rest = _MISTRAL.sub(take, _TAGGED.sub(take, text))
    bare = rest.strip().removeprefix("<|python_tag|>").strip()
    if not calls and bare[:1] in ("{", "["):
        calls = _read(bare, names)
        rest = "" if calls else rest
    return (rest.strip() if calls else text), tuple(calls)


def _read(text: str, names: set[str]) -> list[ToolCall]:
    """Calls in a JSON text; [] if it is not one, or names something unknown."""
    try:
        data = json.loads(text)
    except ValueError:
        return []
    calls = []
    for row in data if isinstance(data, list) else [data]:
        if not isinstance(row, dict) or row.get("name") not in names:
            return []
        arguments = row.get("arguments", row.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return []
        if not isinstance(arguments, dict):
            return []
        calls.append(ToolCall(row["name"], arguments))
    return calls
