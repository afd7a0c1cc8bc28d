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
                    load_s=9.0 if i == dear else 1.0, last_used=float(i), uses=1 + i,
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


def test_the_cheapest_to_bring_back_per_byte_leaves_first_under_cost() -> None:
    rows = [row("dear", 10, load_s=60), row("often", 10, load_s=1, uses=30), row("cheap", 10, load_s=1)]
    assert [r.key for r in plan_eviction(rows, {"gpu": 25}, 0.0) or ()] == ["cheap", "often", "dear"]


def test_a_large_cheap_model_leaves_instead_of_several_dear_ones() -> None:
    rows = [row("s1", 10, load_s=1), row("s2", 10, load_s=1), row("large", 40, load_s=5)]
    assert [r.key for r in plan_eviction(rows, {"gpu": 40}, 0.0) or ()] == ["large"]


def test_a_model_that_holds_nothing_of_the_short_pool_stays() -> None:
    rows = [row("other", ram=90, load_s=0.1), row("right", gpu=20, load_s=50)]
    assert [r.key for r in plan_eviction(rows, {"gpu": 10}, 0.0) or ()] == ["right"]


def test_a_floor_that_rose_outweighs_an_old_score() -> None:
    old, fresh = row("old", 1 << 30, load_s=5), row("fresh", 1 << 30, load_s=1, floor=5)
    assert score(old, 0.0) == 5 and score(fresh, 0.0) == 6
