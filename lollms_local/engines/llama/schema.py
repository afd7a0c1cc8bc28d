"""JSON Schema to GBNF. The grammar is always finite, so an answer that has its budget always ends as valid JSON.

A small model left alone repeats itself inside a string or a list until its tokens run out, and half a JSON text is
worth nothing. So everything unbounded gets a bound here, and the bounds shrink until the longest possible answer fits
the budget.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import UnsupportedRequest
from .gbnf import CHAR, literal, number_range, regex, repeat
from .schema_values import bound, decimal, decimal_places, multiples, possible

__all__ = ["schema_grammar"]

log = logging.getLogger(__name__)

MAX_RULES = 20_000

_FORMATS = {
    "date": ('[12] [0-9]{3} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])', 10),
    "time": ('([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] "Z"', 9),
    "uuid": ('[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}', 36),
}
_FORMATS["date-time"] = (f'{_FORMATS["date"][0]} "T" {_FORMATS["time"][0]}', 20)


@dataclass(frozen=True)
class _Caps:
    """Bounds for what the schema leaves open."""

    characters: int = 2000
    items: int = 64
    depth: int = 4
    shrunk: bool = False

    def smaller(self) -> _Caps:
        return replace(
            self,
            characters=max(8, self.characters // 2),
            items=max(1, self.items // 2),
            depth=max(1, self.depth - 1),
            shrunk=True,
        )


@dataclass(frozen=True)
class _Rule:
    """An expression, and the most characters that it can match."""

    text: str
    length: int


def schema_grammar(schema: Mapping[str, Any], budget: int) -> str:
    """A grammar for the JSON texts that a schema allows.

    Known: type, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, uniqueItems (few
    possible values), enum, const, anyOf, oneOf, allOf, $ref (within the schema), minLength, maxLength, pattern, format
    (date, time, date-time, uuid), minimum, maximum and their exclusive forms, multipleOf. Unknown words are passed over
    with a line in the log.

    Args:
        schema: the schema; {} = any JSON value.
        budget: tokens that the answer may have; a token has at least one character in nearly all texts.

    Raises:
        UnsupportedRequest: nothing can satisfy the schema, or it is too large.
    """
    caps, smallest = _Caps(), _Caps(8, 1, 1, True)
    while True:
        writer = _Writer(schema, caps)
        root = writer.value(schema)
        if root is None:
            raise UnsupportedRequest("No JSON value can satisfy this schema.", hint="Look for bounds that exclude all.")
        if root.length <= budget or caps == smallest:
            rules = [f"root ::= {root.text}", f"char ::= {CHAR}", *(f"{n} ::= {t}" for n, t in writer.rules.items())]
            return "\n".join(rules)
        caps = caps.smaller()


class _Writer:
    """One pass over a schema with one set of bounds."""

    def __init__(self, root: Mapping[str, Any], caps: _Caps) -> None:
        self.root, self.caps = root, caps
        self.rules: dict[str, str] = {}
        self.open_refs: Counter[str] = Counter()

    def named(self, rule: _Rule) -> _Rule:
        """The same under a name of its own, so that texts stay short where it is used more than once."""
        if len(self.rules) >= MAX_RULES:
            raise UnsupportedRequest("The JSON schema is too large for a grammar.", hint="Split it.")
        name = f"r{len(self.rules)}"
        self.rules[name] = rule.text
        return _Rule(name, rule.length)

    def value(self, schema: Any, depth: int = 0) -> _Rule | None:
        """What a schema allows; None = nothing."""
        if schema is False or depth > 64:
            return None
        if schema is True or not isinstance(schema, Mapping):
            schema = {}
        if "$ref" in schema:
            return self.reference(schema, depth)
        if "allOf" in schema:
            schema = self.merged(schema)
        if "const" in schema:
            return self.listed([schema["const"]])
        if "enum" in schema:
            return self.listed(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if word in schema:
                rest = {k: v for k, v in schema.items() if k != word}
                return self.any_of([{**rest, **s} if isinstance(s, Mapping) else s for s in schema[word]], depth)
        kind = schema.get("type") or _implied_type(schema)
        kinds = list(kind) if isinstance(kind, (list, tuple)) else [kind]
        if schema.get("nullable") and "null" not in kinds:
            kinds.append("null")
        if len(kinds) > 1:
            return self.any_of([{**schema, "type": k, "nullable": False} for k in kinds], depth)
        return self.typed(kinds[0], schema, depth)

    def typed(self, kind: Any, schema: Mapping[str, Any], depth: int) -> _Rule | None:
        if kind == "object":
            return self.object(schema, depth)
        if kind == "array":
            return self.array(schema, depth)
        if kind == "string":
            return self.string(schema)
        if kind in ("integer", "number"):
            return self.number(schema, kind)
        if kind == "boolean":
            return _Rule('("true" | "false")', 5)
        if kind == "null":
            return _Rule('"null"', 4)
        if kind is not None:
            raise UnsupportedRequest(f"JSON schema: {kind!r} is not a type.")
        simple: list[Any] = [{"type": t} for t in ("string", "number", "boolean", "null")]
        nested: list[Any] = [{"type": "object"}, {"type": "array"}] if depth < self.caps.depth else []
        return self.any_of([*nested, *simple], depth)

    def any_of(self, schemas: Sequence[Any], depth: int) -> _Rule | None:
        rules = [r for r in (self.value(s, depth) for s in schemas) if r is not None]
        if not rules:
            return None
        return self.named(_Rule(" | ".join(r.text for r in rules), max(r.length for r in rules)))

    def listed(self, values: Any) -> _Rule | None:
        texts = [json.dumps(v, ensure_ascii=False) for v in values]
        if not texts:
            return None
        return self.named(_Rule(" | ".join(literal(t) for t in texts), max(map(len, texts))))

    def reference(self, schema: Mapping[str, Any], depth: int) -> _Rule | None:
        """A schema defined elsewhere in the document; one that contains itself ends after `caps.depth` rounds."""
        pointer = str(schema["$ref"])
        if not pointer.startswith("#"):
            raise UnsupportedRequest(f"JSON schema: {pointer} is outside of the schema.", hint="Copy it into $defs.")
        target: Any = self.root
        for part in pointer[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                target = target[int(key)] if isinstance(target, list) else target[key]
            except (KeyError, IndexError, ValueError, TypeError) as exc:
                raise UnsupportedRequest(f"JSON schema: there is no {pointer}.") from exc
        if self.open_refs[pointer] >= self.caps.depth:
            return None
        self.open_refs[pointer] += 1
        siblings = {
            k: v for k, v in schema.items() if k not in ("$ref", "$defs", "definitions", "description", "title")
        }
        found = self.value({**target, **siblings} if siblings and isinstance(target, Mapping) else target, depth + 1)
        self.open_refs[pointer] -= 1
        return found

    def merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """allOf, as far as objects and bounds go: properties are united, later words win."""
        whole: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            while isinstance(part, Mapping) and str(part.get("$ref", "")).startswith("#"):
                target: Any = self.root
                for key in part["$ref"][1:].split("/")[1:]:
                    target = target[key] if isinstance(target, Mapping) and key in target else {}
                part = target
            if not isinstance(part, Mapping):
                continue
            inner = self.merged(part) if "allOf" in part else dict(part)
            properties = {**whole.get("properties", {}), **inner.pop("properties", {})}
            required = list(dict.fromkeys([*whole.get("required", []), *inner.pop("required", [])]))
            whole.update(inner)
            whole.update(
                {"properties": properties} if properties else {}, **({"required": required} if required else {})
            )
        return whole

    # --- kinds ------------------------------------------------------------------------------------------------

    def object(self, schema: Mapping[str, Any], depth: int) -> _Rule | None:
        properties = schema.get("properties") or {}
        if not properties:
            return self.dictionary(schema, depth)
        needed: list[_Rule] = []
        optional: list[_Rule] = []
        required = set(schema.get("required") or [])
        for name, sub in properties.items():
            rule = self.value(sub, depth + 1)
            if rule is None:
                if name in required:
                    return None
                continue
            key = literal(json.dumps(name, ensure_ascii=False) + ":")
            row = self.named(
                _Rule(f'{key} " "? {rule.text}', len(json.dumps(name, ensure_ascii=False)) + 2 + rule.length)
            )
            (needed if name in required else optional).append(row)
        length = 2 + sum(r.length + 2 for r in (*needed, *optional))
        comma = '"," " "?'
        further = [f"({comma} {r.text})?" for r in optional]
        if needed:
            body = f" {comma} ".join(r.text for r in needed)
            return self.named(_Rule(f'"{{" {" ".join([body, *further])} "}}"', length))
        starts = [" ".join([row.text, *further[i + 1 :]]) for i, row in enumerate(optional)]
        empty = "" if schema.get("minProperties") else "?"
        return self.named(_Rule(f'"{{" ({" | ".join(starts)}){empty} "}}"' if starts else '"{" "}"', length))

    def dictionary(self, schema: Mapping[str, Any], depth: int) -> _Rule | None:
        """An object whose keys are free."""
        if depth >= self.caps.depth and not schema.get("additionalProperties"):
            return _Rule('"{" "}"', 2)
        rule = self.value(schema.get("additionalProperties", True), depth + 1)
        if rule is None or schema.get("maxProperties") == 0:
            return _Rule('"{" "}"', 2)
        least = int(schema.get("minProperties", 0))
        most = max(least, min(int(schema.get("maxProperties", self.caps.items)), self.caps.items))
        pair = self.named(_Rule(f'"\\"" char{{1,32}} "\\":" " "? {rule.text}', 36 + rule.length))
        return self.named(_series('"{"', pair, '"}"', least, most))

    def array(self, schema: Mapping[str, Any], depth: int) -> _Rule | None:
        prefix = schema.get("prefixItems")
        items = schema.get("items", True)
        if isinstance(items, list):  # drafts up to 2019
            prefix, items = items, schema.get("additionalItems", False)
        least = int(schema.get("minItems", 0))
        most = self.most(schema.get("maxItems"), least, self.caps.items)
        if prefix:
            return self.tuple(prefix, depth)
        if depth >= self.caps.depth and "items" not in schema and not least:
            return _Rule('"[" "]"', 2)
        if schema.get("uniqueItems"):
            unique = self.unique(items, least, most)
            if unique is not None:
                return unique
        rule = self.value(items, depth + 1)
        if rule is None or most == 0:
            return None if least else _Rule('"[" "]"', 2)
        return self.named(_series('"["', self.named(rule), '"]"', least, most))

    def tuple(self, schemas: Sequence[Any], depth: int) -> _Rule | None:
        rules = [self.value(s, depth + 1) for s in schemas]
        if any(r is None for r in rules):
            return None
        whole = ' "," " "? '.join(r.text for r in rules if r)
        return self.named(_Rule(f'"[" {whole} "]"', 2 + sum(r.length + 2 for r in rules if r)))

    def most(self, said: Any, least: int, cap: int) -> int:
        """An upper bound: what the schema says, or our cap; once the caps had to shrink, the smaller of the two."""
        if said is None:
            return max(least, cap)
        return max(least, min(int(said), cap if self.caps.shrunk else 100_000))

    def unique(self, items: Any, least: int, most: int) -> _Rule | None:
        """Lists without repetition over few values: one rule per set of values that are left."""
        texts = possible(items)
        if texts is None or not least <= min(most, len(texts)):
            return None
        names: dict[frozenset[str], str] = {}
        values = frozenset(texts)
        for size in range(len(values) + 1):
            for left in itertools.combinations(sorted(values), size):
                used = len(values) - size
                more = [f"{literal(v)} {names[frozenset(left) - {v}]}" for v in left] if used < most else []
                sep = '"," " "? ' if used else ""
                parts = [f"{sep}({' | '.join(more)})"] if more else []
                parts += ['""'] if used >= least else []
                names[frozenset(left)] = self.named(_Rule(" | ".join(parts) or '"\\x00"', 0)).text
        return _Rule(f'"[" {names[values]} "]"', 2 + sum(len(t) + 2 for t in values))

    def string(self, schema: Mapping[str, Any]) -> _Rule:
        fixed = _FORMATS.get(str(schema.get("format", "")))
        if fixed is not None:
            return _Rule(f'"\\"" {fixed[0]} "\\""', fixed[1] + 2)
        least = int(schema.get("minLength", 0))
        most = self.most(schema.get("maxLength"), least, self.caps.characters)
        pattern = schema.get("pattern")
        if pattern:
            text = regex(str(pattern), min(most, self.caps.characters, 64))
            if text is not None:
                return self.named(_Rule(f'"\\"" {text} "\\""', most + 2))
            log.warning("JSON schema: the pattern %r is beyond a grammar; any text is allowed there.", pattern)
        return self.named(_Rule(f'"\\"" {repeat("char", least, most)} "\\""', most + 2))

    def number(self, schema: Mapping[str, Any], kind: str) -> _Rule | None:
        low, open_low = bound(schema, "minimum", "exclusiveMinimum")
        high, open_high = bound(schema, "maximum", "exclusiveMaximum")
        step = decimal(schema.get("multipleOf"))
        if step is not None and step > 0:
            listed = multiples(low, open_low, high, open_high, step)
            if listed:
                return self.listed([int(v) if v == v.to_integral_value() else float(v) for v in listed])
            if step != step.to_integral_value() or kind == "integer":
                log.warning("JSON schema: multipleOf %s is not enforced.", step)
        if kind == "number" and low is None and high is None:
            return _Rule('"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,12})?', 30)
        places = [0] if kind == "integer" else decimal_places(low, high)
        ranges = [number_range(low, high, open_low=open_low, open_high=open_high, decimals=d) for d in places]
        texts = [r for r in ranges if r]
        return self.named(_Rule(" | ".join(texts), 20)) if texts else None


def _series(start: str, item: _Rule, end: str, least: int, most: int) -> _Rule:
    """Items with commas between them."""
    more = repeat(f'("," " "? {item.text})', max(0, least - 1), most - 1)
    body = f"({item.text} {more})" if most > 1 else item.text
    return _Rule(f"{start} {body}{'' if least else '?'} {end}", 2 + most * (item.length + 2))


def _implied_type(schema: Mapping[str, Any]) -> str | None:
    """The type that other words imply, where none is said."""
    words = (
        ("object", ("properties", "additionalProperties", "required")),
        ("array", ("items", "prefixItems", "minItems", "maxItems")),
        ("string", ("pattern", "minLength", "maxLength", "format")),
        ("number", ("minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum")),
    )
    return next((kind for kind, names in words if any(n in schema for n in names)), None)
