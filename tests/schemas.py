"""Random JSON schemas of the kinds that people write: nested objects, enums, lists, numbers with bounds."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["random_schema"]

_NAMES = ("name", "age", "tags", "größe", "is open", "price", "address", "kind", "n", 'a "b"', "items", "since")


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema; at the top always an object."""
    kinds = ["string", "integer", "number", "boolean", "enum", "null-or", "pattern"]
    if depth < 3:
        kinds += ["object", "array"]
    kind = "object" if depth == 0 else draw.choice(kinds)
    if kind == "object":
        names = draw.sample(_NAMES, draw.randint(1, 4))
        required = [name for name in names if depth == 0 or draw.random() < 0.7]
        rows = {name: random_schema(draw, depth + 1) for name in names}
        return {"type": "object", "properties": rows, "required": required, "additionalProperties": False}
    if kind == "array":
        least = draw.randint(0, 2)
        items = random_schema(draw, depth + 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + draw.randint(0, 2)}
    if kind == "string":
        least = draw.randint(0, 4)
        return {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 12)}
    if kind == "enum":
        return {"enum": draw.sample(["red", "größer", 3, -1.5, None, True, "a,b", 'say "x"'], draw.randint(1, 5))}
    if kind == "null-or":
        return {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 9}]}
    if kind == "pattern":
        pattern = draw.choice(["^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "^(yes|no)$"])
        return {"type": "string", "pattern": pattern}
    if kind == "boolean":
        return {"type": "boolean"}
    low = draw.randint(-500, 500)
    bounds = draw.choice(
        [
            {"minimum": low, "maximum": low + draw.randint(0, 900)},
            {"minimum": low},
            {"exclusiveMaximum": low},
            {"minimum": low + 0.25, "maximum": low + 0.75} if kind == "number" else {"multipleOf": 5, "minimum": low},
            {},
        ]
    )
    return {"type": kind, **bounds}
