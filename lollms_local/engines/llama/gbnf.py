"""Pieces of GBNF: quoted text, ranges of numbers digit by digit, regular expressions.

GBNF is llama.cpp's grammar notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

__all__ = ["CHAR", "json_text", "literal", "number_range", "regex", "repeat"]

#: one character of a JSON string. No lone surrogates: "\ud800" would be valid JSON that nothing can write as UTF-8
CHAR = r'([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2})))'
#: the library refuses larger repetitions in one go
MAX_REPEAT = 1000


def literal(text: str) -> str:
    """A text as it stands."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{quoted.replace(chr(9), chr(92) + "t")}"'


def repeat(item: str, least: int, most: int) -> str:
    """`item`, `least` to `most` times."""
    if most <= MAX_REPEAT:
        return f"{item}{{{least},{most}}}"
    whole, rest = divmod(most, MAX_REPEAT)
    fixed = min(least // MAX_REPEAT, whole)
    parts = [f"{item}{{{MAX_REPEAT},{MAX_REPEAT}}}"] * fixed
    left = least - fixed * MAX_REPEAT
    for _ in range(whole - fixed):
        parts.append(f"{item}{{{min(left, MAX_REPEAT)},{MAX_REPEAT}}}")
        left -= min(left, MAX_REPEAT)
    parts.append(f"{item}{{{left},{rest}}}")
    return f"({' '.join(parts)})"


# --- numbers ------------------------------------------------------------------------------------------------------


def number_range(low: Decimal | None, high: Decimal | None, *, open_low: bool, open_high: bool, decimals: int) -> str:
    """Numbers with exactly `decimals` decimals within the bounds; "" if there are none.

    Args:
        low, high: bounds; None = none (then about twelve digits beyond the other bound, or around zero).
        open_low, open_high: the bound itself is not allowed.
        decimals: digits after the point; 0 = integers.
    """
    scale = Decimal(10) ** decimals
    digits = max([12, *(len(str(abs(int(b)))) + 3 for b in (low, high) if b is not None)])
    reach = 10**digits * int(scale) - 1
    first = -reach if low is None else math.floor(low * scale) + 1 if open_low else math.ceil(low * scale)
    last = reach if high is None else math.ceil(high * scale) - 1 if open_high else math.floor(high * scale)
    parts = []
    if first <= last and first < 0:
        parts.append(f'"-" {_magnitudes(max(1, -last), -first, decimals)}')
    if first <= last and last >= 0:
        parts.append(_magnitudes(max(0, first), last, decimals))
    return f"({' | '.join(parts)})" if parts else ""


def _magnitudes(low: int, high: int, decimals: int) -> str:
    """Scaled numbers of `low` to `high`, by number of digits.

    Numbers of digits that are allowed as a whole become one rule: the library follows every alternative that is still
    open at every token, and a dozen of them cost it seconds an answer.
    """
    parts = []
    whole: list[int] = []
    for width in range(max(len(str(low)), decimals + 1), max(len(str(high)), decimals + 1) + 1):
        start = max(low, 10 ** (width - 1) if width > decimals + 1 else 0)
        end = min(high, 10**width - 1)
        if width > decimals + 1 and (start, end) == (10 ** (width - 1), 10**width - 1):
            whole.append(width - decimals - 1)
        elif start <= end:
            parts.append(_digits(str(start).zfill(width), str(end).zfill(width), decimals))
    if whole:
        behind = f' "." [0-9]{{{decimals}}}' if decimals else ""
        parts.append(f"[1-9] [0-9]{{{whole[0]},{whole[-1]}}}{behind}")
    return f"({' | '.join(parts)})"


def _digits(low: str, high: str, decimals: int) -> str:
    """Digit strings of one width between two of them, with the point before the last `decimals`."""
    width = len(low)
    if not width:
        return ""
    dot = '"." ' if decimals and width == decimals else ""
    if set(low) == {"0"} and set(high) == {"9"}:
        if decimals and width > decimals:
            return f'[0-9]{{{width - decimals}}} "." [0-9]{{{decimals}}}'
        return f"{dot}[0-9]{{{width}}}"
    if low[0] == high[0]:
        return f'{dot}"{low[0]}" {_digits(low[1:], high[1:], decimals)}'
    rest = width - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return f"{dot}[{low[0]}-{high[0]}] {_digits(low[1:], high[1:], decimals)}"
    parts = [f'"{low[0]}" {_digits(low[1:], "9" * rest, decimals)}']
    if int(high[0]) - int(low[0]) > 1:
        parts.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] {_digits('0' * rest, '9' * rest, decimals)}")
    parts.append(f'"{high[0]}" {_digits("0" * rest, high[1:], decimals)}')
    return f"{dot}({' | '.join(parts)})"


# --- regular expressions ------------------------------------------------------------------------------------------

_CLASSES = {"digit": "0-9", "word": "a-zA-Z0-9_", "space": " "}


def regex(pattern: str, cap: int) -> str | None:
    """A `pattern` of JSON Schema as a grammar; None if a grammar cannot say it (look-arounds, ...).

    Args:
        pattern: ECMA or Python regular expression; without anchors other text may surround it.
        cap: most repetitions of "*" and "+".
    """
    parser: Any = getattr(re, "_parser", None)
    if parser is None:  # Python 3.10
        import sre_parse as parser  # type: ignore[no-redef, unused-ignore]
    anchored_left, anchored_right = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    body = pattern[int(anchored_left) : len(pattern) - int(anchored_right)]
    try:
        inner = _sequence(parser.parse(body), cap)
    except (re.error, KeyError, ValueError, OverflowError):
        return None
    around = f"{CHAR}{{0,8}}"
    return f"{'' if anchored_left else around + ' '}{inner}{'' if anchored_right else ' ' + around}"


def _sequence(parsed: Any, cap: int) -> str:
    return " ".join(_node(str(op), argument, cap) for op, argument in parsed) or '""'


def _node(op: str, argument: Any, cap: int) -> str:
    if op == "LITERAL":
        return literal(json_text(chr(argument)))
    if op == "NOT_LITERAL":
        return f'[^"\\\\\\x00-\\x1F{_in_class(chr(argument))}]'
    if op == "ANY":
        return '[^"\\\\\\x00-\\x1F]'
    if op == "IN":
        return _character_class(argument)
    if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, most, inner = argument
        return repeat(f"({_sequence(inner, cap)})", int(least), min(int(most), max(cap, int(least))))
    if op == "SUBPATTERN":
        return f"({_sequence(argument[-1], cap)})"
    if op == "BRANCH":
        return f"({' | '.join(_sequence(branch, cap) for branch in argument[1])})"
    raise ValueError(op)


def _character_class(items: Any) -> str:
    inside, negated = "", False
    for op, argument in items:
        kind = str(op)
        if kind == "NEGATE":
            negated = True
        elif kind == "LITERAL":
            inside += _in_class(chr(argument))
        elif kind == "RANGE":
            inside += f"{_in_class(chr(argument[0]))}-{_in_class(chr(argument[1]))}"
        elif kind == "CATEGORY":
            name = str(argument).lower().removeprefix("category_")
            inside += _CLASSES[name]
        else:
            raise ValueError(kind)
    # a character that JSON must escape cannot stand in a class
    if not negated and any(c in inside for c in '"'):
        raise ValueError('"')
    return f'[^"\\\\\\x00-\\x1F{inside}]' if negated else f"[{inside}]"


def _in_class(char: str) -> str:
    if char == "\\" or ord(char) < 32:
        raise ValueError(char)
    return "\\" + char if char in "[]^-" else char


def json_text(text: str) -> str:
    """A text as it is written inside a JSON string."""
    import json

    return json.dumps(text, ensure_ascii=False)[1:-1]
