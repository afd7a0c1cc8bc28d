"""The simulation of stalls: its optimum is one, its policies are the manager's, its traces are always the same."""

from __future__ import annotations

import itertools
import random

import pytest

from benchmarks.simulate_traces import (
    MODELS,
    TRACES,
    Model,
    Request,
    cooperative,
    least_stall,
    managed,
    smallest_first,
    stalls,
)

SMALL = {"a": Model(4, 3.0), "b": Model(5, 1.0), "c": Model(2, 2.0), "d": Model(6, 5.0)}


def trace(names: str) -> list[Request]:
    return [Request(name, 1.0) for name in names]


def every_choice(rest: list[Request], held: frozenset[str], budget: int) -> float:
    """The least stall by trying everything: for every load, every set that might be kept."""
    if not rest:
        return 0.0
    name = rest[0].model
    if name in held:
        return every_choice(rest[1:], held, budget)
    least = float("inf")
    for count in range(len(held) + 1):
        for kept in itertools.combinations(sorted(held), count):
            if sum(SMALL[k].size_bytes for k in kept) + SMALL[name].size_bytes <= budget:
                least = min(least, every_choice(rest[1:], frozenset({*kept, name}), budget))
    return SMALL[name].load_s + least


def test_the_optimum_is_what_trying_everything_finds_and_nothing_is_below_it() -> None:
    chance = random.Random(7)
    for _ in range(25):
        requests = trace("".join(chance.choices("abcd", k=8)))
        budget = chance.randint(7, 14)
        optimum = least_stall(requests, SMALL, budget)
        assert optimum == every_choice(requests, frozenset(), budget)
        assert all(seconds >= optimum for seconds in stalls(requests, SMALL, budget).values())


def test_rules_do_what_their_names_say() -> None:
    requests = trace("acbac")
    assert cooperative(requests, SMALL) == 3 + 2 + 1 + 3 + 2
    assert smallest_first(requests, SMALL, 9) == 3 + 2 + 1 + 2  # c leaves for b
    assert managed(requests, SMALL, 9, "lru") == 3 + 2 + 1 + 3 + 2  # a leaves for b, c for a, b for c
    assert managed(requests, SMALL, 11, "lru") == 3 + 2 + 1


@pytest.mark.parametrize("name", TRACES)
def test_cost_waits_no_longer_than_lru_on_the_published_traces(name: str) -> None:
    assert TRACES[name](random.Random(1)) == TRACES[name](random.Random(1))
    requests = TRACES[name](random.Random(1))
    models = {request.model: MODELS[request.model] for request in requests}
    budget = sum(model.size_bytes for model in models.values()) * 6 // 10
    result = stalls(requests, models, budget)
    assert result["optimum"] <= result["cost"] <= min(1.03 * result["lru"], 1.45 * result["optimum"])
    assert result["cost"] < result["cooperative"] / 2
