"""Answers to random JSON schemas by a small model, through the host: how many are valid.

    python benchmarks/random_schemas.py [--model FILE.gguf] [--count N] [--seed N] [--through text|host]

`text` asks `client.generate_text(json_schema=...)` once per schema; `host` asks `generate_structured_content`, as the
host's own callers do. Every answer is parsed strictly and validated, formats included. Prints JSON; ends with 1 if an
answer was not valid.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lollms_local.client import connect
from lollms_local.runtime import get_runtime

NAMES = ("name", "age", "tags", "price", "größe", "is open", "address", "kind", "notes", 'the "id"', "items", "since")
WORDS = ("red", "green", "dark blue", "größer", "a,b", 'say "x"', "\\path\\to", "naïve", "日本")
Schema = dict[str, Any]


def main() -> int:
    """Ask, check, print."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--count", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=2026)
    arguments.add_argument("--through", choices=("text", "host"), default="text")
    arguments.add_argument("--temperature", type=float, default=0.7)
    given = arguments.parse_args()
    path = given.model or next((get_runtime().models_dir / "smollm2-135m-instruct").glob("*.gguf"))
    client = connect(chat=str(path), llm_binding_config={"ctx_size": 8192, "temperature": given.temperature})
    draw = random.Random(given.seed)
    faults: list[Schema] = []
    seconds: list[float] = []
    words: set[str] = set()
    for number in range(given.count):
        schema = random_object(draw, 0)
        words |= keywords(schema)
        started = time.perf_counter()
        answer, fault = ask(client, schema, number, given.through)
        seconds.append(time.perf_counter() - started)
        log(f"{number + 1} of {given.count}: {seconds[-1]:.1f} s, {len(answer)} characters, {fault or 'valid'}")
        if fault:
            faults.append({"number": number, "fault": fault, "answer": answer[:300], "schema": schema})
            print(json.dumps(faults[-1], ensure_ascii=False), flush=True)
    result = {
        "model": path.name,
        "through": given.through,
        "seed": given.seed,
        "valid": f"{given.count - len(faults)} of {given.count}",
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_worst": round(max(seconds), 2),
        "words_of_json_schema": sorted(words),
    }
    print(json.dumps(result))
    return 1 if faults else 0


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ask(client: Any, schema: Schema, number: int, through: str) -> tuple[str, str]:
    """One answer, and what is wrong with it ("" = nothing)."""
    import jsonschema

    prompt = "Invent an entry of a catalogue of things in a house."
    if through == "host":
        value = client.generate_structured_content(prompt, schema=schema, seed=number, n_predict=700)
        answer = json.dumps(value, ensure_ascii=False)
    else:
        answer = client.generate_text(prompt, json_schema=schema, seed=number, n_predict=700)
    try:
        value = json.loads(answer)
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    except ValueError as exc:
        return answer, f"no JSON: {exc}"
    except jsonschema.ValidationError as exc:
        return answer, f"not valid: {exc.message[:200]}"
    return answer, ""


# --- schemas ----------------------------------------------------------------------------------------------------------


def random_object(draw: random.Random, depth: int) -> Schema:
    """An object of one to five properties, some of them optional."""
    names = draw.sample(NAMES, draw.randint(1, 5))
    schema: Schema = {"type": "object", "properties": {name: random_value(draw, depth + 1) for name in names}}
    required = [name for name in names if draw.random() < 0.75]
    if required or depth == 0:
        schema["required"] = required or names[:1]
    if draw.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def random_value(draw: random.Random, depth: int) -> Schema:
    """Any kind of value; objects and lists down to the fourth level."""
    kinds: list[Callable[[random.Random], Schema]] = [text, number, number, choice, small]
    if depth < 4:
        kinds += [lambda d: random_object(d, depth), lambda d: random_list(d, depth)]
    return draw.choice(kinds)(draw)


def random_list(draw: random.Random, depth: int) -> Schema:
    if draw.random() < 0.2:
        values = draw.sample(WORDS, 5)
        return {"type": "array", "items": {"enum": values}, "minItems": 1, "maxItems": 4, "uniqueItems": True}
    least = draw.randint(0, 3)
    schema: Schema = {"type": "array", "items": random_value(draw, depth + 1), "minItems": least}
    if draw.random() < 0.8:
        schema["maxItems"] = least + draw.randint(0, 3)
    return schema


def text(draw: random.Random) -> Schema:
    least = draw.randint(0, 6)
    rows: list[Schema] = [
        {},
        {"minLength": least},
        {"maxLength": 4 + draw.randint(0, 60)},
        {"minLength": least, "maxLength": least + draw.randint(0, 20)},
        {"pattern": draw.choice(["^[A-Z][a-z]{1,8}$", r"^\d{4}-\d{2}$", "^(low|mid|high)$", "^#[0-9a-f]{6}$"])},
        {"format": draw.choice(["date", "uuid"])},
    ]
    return {"type": "string", **draw.choice(rows)}


def number(draw: random.Random) -> Schema:
    low, width = draw.randint(-1000, 1000), draw.randint(1, 2000)
    decimal = round(draw.uniform(-5, 5), 2)
    whole: list[Schema] = [
        {"minimum": low, "maximum": low + width},
        {"minimum": low},
        {"maximum": low},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 1 + width},
        {"minimum": 0, "maximum": 500, "multipleOf": draw.choice([2, 5, 25])},
        {"minimum": low, "maximum": low},
    ]
    real: list[Schema] = [
        {"minimum": decimal, "maximum": round(decimal + draw.choice([0.01, 0.5, 7.25]), 2)},
        {"exclusiveMinimum": decimal, "exclusiveMaximum": round(decimal + 0.5, 2)},
        {"exclusiveMinimum": 0},
        {"minimum": -90, "maximum": 90},
    ]
    if draw.random() < 0.5:
        return {"type": "integer", **draw.choice(whole)}
    return {"type": "number", **draw.choice(real)}


def choice(draw: random.Random) -> Schema:
    mixed = [*WORDS, 3, -1.5, None, True]
    return {"enum": draw.sample(mixed, draw.randint(1, 6))}


def small(draw: random.Random) -> Schema:
    rows: list[Schema] = [
        {"type": "boolean"},
        {"type": ["string", "null"], "maxLength": 20},
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "string", "maxLength": 5}]},
        {"const": draw.choice(["fixed", 7, None])},
        {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99}},
    ]
    return draw.choice(rows)


def keywords(schema: Any) -> set[str]:
    """The words of JSON Schema that occur."""
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    below = [keywords(v) for k, v in schema.items() if k in ("items", "anyOf", "additionalProperties")]
    inner = [keywords(v) for v in schema.get("properties", {}).values()]
    return set(schema).union(*below, *inner)


if __name__ == "__main__":
    raise SystemExit(main())
