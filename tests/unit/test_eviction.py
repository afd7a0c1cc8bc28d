"""The choice of what leaves: every small case, and its order."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lollms_local.eviction import Resident, plan_eviction, score

POLICIES = ("cost", "lru")


def row(name: str, gpu: int = 0, ram: int = 0, **facts: float | bool) -> Resident:
    return Resident(name, name, {p: n for p, n in (("gpu", gpu), ("ram", ram)) if n}, **facts)  # type: ignore[arg-type]


def freed(rows: list[Resident], pool: str = "gpu") -> int:
    return sum(r.claims.get(pool, 0) for r in rows)


def check(rows: list[Resident], short: dict[str, int], policy: str) -> None:
    """The properties that every plan has."""
    plan = plan_eviction(rows, short, now=10.0, policy=policy)  # type: ignore[arg-type]
    movable = [r for r in rows if not r.leases and not r.pinned]
    possible = all(freed(movable, pool) >= count for pool, count in short.items())
    assert (plan is not None) == possible
    if plan is None:
        return
    assert all(r in movable for r in plan) and len({r.key for r in plan}) == len(plan)
    for pool, count in short.items():
        assert freed(plan, pool) >= count
    for victim in plan:
        rest = [r for r in plan if r is not victim]
        assert any(freed(rest, pool) < count for pool, count in short.items()), "a victim too many"


def test_every_small_case_frees_enough_and_not_one_too_many_and_spares_leased_and_pinned() -> None:
    states = [("idle", s) for s in (10, 20, 40)] + [("leased", 40), ("pinned", 20), ("gone", 0)]
    for combination in itertools.product(states, repeat=3):
        for dear in range(3):
            rows = [
                row(
                    f"m{i}", size, leases=int(state == "leased"), pinned=state == "pinned",
                    load_s=9.0 if i == dear else 1.0, last_used=float(i), interval_s=float(i),
                )
                for i, (state, size) in enumerate(combination)
                if state != "gone"
            ]  # fmt: skip
            for short in (1, 10, 25, 40, 60, 81):
                for policy in POLICIES:
                    check(rows, {"gpu": short}, policy)


@settings(max_examples=150, deadline=None)
@given(
    facts=st.lists(
        st.tuples(
            st.integers(0, 50), st.integers(0, 50), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 9)
        ),
        max_size=7,
    ),
    short=st.fixed_dictionaries({"gpu": st.integers(0, 120), "ram": st.integers(0, 120)}),
    policy=st.sampled_from(POLICIES),
)
def test_plans_over_two_pools_have_the_same_properties(
    facts: list[tuple[int, int, bool, bool, int, int]], short: dict[str, int], policy: str
) -> None:
    rows = [
        row(f"m{i}", gpu, ram, leases=int(leased), pinned=pinned, load_s=float(load), last_used=float(used))
        for i, (gpu, ram, leased, pinned, load, used) in enumerate(facts)
    ]
    check(rows, short, policy)


def test_nothing_short_means_nothing_leaves() -> None:
    assert plan_eviction([row("a", 10)], {"gpu": 0}, 0.0) == []
    assert plan_eviction([], {}, 0.0) == []


def test_the_longest_idle_leaves_first_under_lru() -> None:
    rows = [row("new", 10, last_used=9, load_s=0.1), row("old", 10, last_used=1, load_s=99)]
    assert [r.key for r in plan_eviction(rows, {"gpu": 5}, 10.0, "lru") or ()] == ["old"]


def test_what_costs_least_waiting_leaves_first_under_cost() -> None:
    rows = [
        row("dear", 10, load_s=60, interval_s=30),
        row("often", 10, load_s=1, interval_s=2),
        row("cheap", 10, load_s=1, interval_s=30),
    ]
    assert [r.key for r in plan_eviction(rows, {"gpu": 25}, 0.0) or ()] == ["cheap", "often", "dear"]
    assert [r.key for r in plan_eviction(rows, {"gpu": 15}, 0.0) or ()] == ["cheap", "often"]


def test_a_large_cheap_model_leaves_instead_of_several_dear_ones() -> None:
    rows = [row("s1", 10, load_s=1), row("s2", 10, load_s=1), row("large", 40, load_s=5)]
    assert [r.key for r in plan_eviction(rows, {"gpu": 40}, 0.0) or ()] == ["large"]


def test_a_model_that_holds_nothing_of_the_short_pool_stays() -> None:
    rows = [row("other", ram=90, load_s=0.1), row("right", gpu=20, load_s=50)]
    assert [r.key for r in plan_eviction(rows, {"gpu": 10}, 0.0) or ()] == ["right"]


def test_a_model_nobody_asks_for_loses_its_worth_however_dear_it_is() -> None:
    old, fresh = row("old", 10, load_s=50, interval_s=10), row("fresh", 10, load_s=1, interval_s=10, last_used=990)
    assert score(old, 5.0) == 5 > score(fresh, 1000.0) == 0.1 > score(old, 1000.0)


@settings(max_examples=100, deadline=None)
@given(
    facts=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    short=st.integers(1, 120),
)
def test_no_other_set_that_is_enough_is_worth_less(facts: list[tuple[int, int, int]], short: int) -> None:
    rows = [row(f"m{i}", gpu, load_s=float(s), last_used=float(used)) for i, (gpu, s, used) in enumerate(facts)]
    plan = plan_eviction(rows, {"gpu": short}, 10.0)
    if plan is None:
        return
    taken = sum(score(r, 10.0) for r in plan)
    for count in range(1, len(rows) + 1):
        for other in itertools.combinations(rows, count):
            assert freed(list(other)) < short or sum(score(r, 10.0) for r in other) >= taken - 1e-9


def test_among_very_many_models_the_plan_is_still_enough_and_has_no_victim_too_many() -> None:
    rows = [row(f"m{i}", 5 + i % 7, load_s=1 + i % 5, last_used=float(i % 11)) for i in range(40)]
    for short in (1, 30, 150):
        check(rows, {"gpu": short}, "cost")
