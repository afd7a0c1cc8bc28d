"""Values that a JSON Schema names: bounds, steps, short lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

__all__ = ["bound", "decimal", "decimal_places", "multiples", "possible"]

#: uniqueItems over at most so many possible values is enforced (a rule per subset)
MAX_UNIQUE = 8
#: multipleOf is enforced by listing the values
MAX_LISTED = 256


def possible(items: Any) -> list[str] | None:
    """All values of a schema as JSON texts, if they are few."""
    if not isinstance(items, Mapping):
        return None
    if "enum" in items:
        texts = [json.dumps(v, ensure_ascii=False) for v in items["enum"]]
    elif items.get("type") == "integer" and "minimum" in items and "maximum" in items:
        first, last = int(items["minimum"]), int(items["maximum"])
        texts = [str(n) for n in range(first, min(last, first + MAX_UNIQUE) + 1)]
    else:
        return None
    return texts if len(texts) <= MAX_UNIQUE else None


def decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def bound(schema: Mapping[str, Any], closed: str, open_: str) -> tuple[Decimal | None, bool]:
    """The tighter of a closed and an open bound, and whether it is open. Draft 4 had a boolean for the latter."""
    at, beyond = decimal(schema.get(closed)), schema.get(open_)
    if beyond is True:
        return at, at is not None
    limit = decimal(beyond)
    if limit is None:
        return at, False
    tighter = at is None or (limit >= at if closed == "minimum" else limit <= at)
    return (limit, True) if tighter else (at, False)


def decimal_places(low: Decimal | None, high: Decimal | None) -> list[int]:
    """Numbers of decimals to offer: none to two, or as many as a narrow range needs."""
    shown = [max(0, -int(b.normalize().as_tuple().exponent)) for b in (low, high) if b is not None]
    most = max(2, *shown)
    if low is not None and high is not None and high > low:
        while (high - low) * Decimal(10) ** most < 4 and most < 15:
            most += 1
    return list(range(min(most, 15) + 1))


def multiples(
    low: Decimal | None, open_low: bool, high: Decimal | None, open_high: bool, step: Decimal
) -> list[Decimal]:
    """All multiples within the bounds, if they are few; around zero where a bound is missing."""
    first = 0 if low is None and high is None else int((low if low is not None else high - step * 100) / step)  # type: ignore[operator]
    values = [step * n for n in range(first - 1, first + MAX_LISTED)]
    inside = [
        v
        for v in values
        if (low is None or v > low or (v == low and not open_low))
        and (high is None or v < high or (v == high and not open_high))
    ]
    return inside[:MAX_LISTED]
