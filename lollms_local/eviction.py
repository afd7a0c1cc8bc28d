"""What leaves memory when something else must come in: pure functions over plain values, so it can be replayed."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Decision", "Policy", "Resident", "plan_eviction", "score"]

Policy = Literal["cost", "lru"]

#: with more candidates than this, the choice is made one by one: all sets of 12 take some milliseconds to look at
EXACT_CANDIDATES = 12


@dataclass(frozen=True)
class Resident:
    """A model in memory, as the choice sees it.

    Attributes:
        key, label: which model.
        claims: bytes that it is charged for, per pool.
        leases: jobs that use it now; it is not evicted while there are any.
        pinned: it is never evicted.
        last_used: when a job last began or ended with it, in seconds of the manager's clock.
        load_s: seconds to have it back once it has left: what its last load took, or its last return from RAM if it can
            be parked there now.
        interval_s: mean time from one use to the next, runs of uses counted as one.
    """

    key: Hashable
    label: str
    claims: Mapping[str, int]
    leases: int = 0
    pinned: bool = False
    last_used: float = 0.0
    load_s: float = 0.0
    interval_s: float = 0.0


def score(resident: Resident, now: float, policy: Policy = "cost") -> float:
    """How much it is worth to keep.

    "cost": seconds of waiting that its absence would cost per second: what having it back takes, over the time until it
    will be wanted. That time is taken to be its usual interval, or its age if it has been idle longer already: so a
    model that nobody asks for loses its worth, however dear its load is. "lru": the longest idle is worth least.
    """
    if policy == "lru":
        return resident.last_used - now
    return resident.load_s / max(1.0, resident.interval_s, now - resident.last_used)


def plan_eviction(
    residents: Sequence[Resident], shortfall: Mapping[str, int], now: float, policy: Policy = "cost"
) -> list[Resident] | None:
    """Choose the models whose removal frees at least `shortfall` bytes in every pool.

    "cost" takes the set whose scores add up to least, whatever the sizes; "lru" the longest idle until it is enough.

    Args:
        residents: everything in memory; leased and pinned ones are never chosen.
        shortfall: bytes that are missing, per pool.
        now: seconds of the clock that `last_used` was read from.

    Returns:
        The victims, least worth first: without any one of them it would not be enough. None if it cannot be enough.
    """
    missing = {pool: amount for pool, amount in shortfall.items() if amount > 0}
    candidates = [r for r in residents if not r.leases and not r.pinned and any(r.claims.get(p, 0) for p in missing)]
    if not _enough(candidates, missing):
        return None
    worth = {r.key: score(r, now, policy) for r in candidates}
    if policy == "cost" and len(candidates) <= EXACT_CANDIDATES:
        chosen = _least_worth(candidates, missing, worth)
    else:
        chosen = _one_by_one(candidates, missing, worth, policy)
    # A large victim chosen late can make small ones chosen before it needless: spare what is worth most first.
    for resident in sorted(chosen, key=lambda r: worth[r.key], reverse=True):
        rest = [r for r in chosen if r is not resident]
        if _enough(rest, missing):
            chosen = rest
    return sorted(chosen, key=lambda r: (worth[r.key], r.last_used))


def _least_worth(
    candidates: Sequence[Resident], missing: Mapping[str, int], worth: Mapping[Hashable, float]
) -> list[Resident]:
    """The set that is enough and worth least; among equals the one idle longest, then the smallest."""
    sets = (chosen for count in range(len(candidates) + 1) for chosen in itertools.combinations(candidates, count))
    return list(
        min(
            (chosen for chosen in sets if _enough(chosen, missing)),
            key=lambda chosen: (sum(worth[r.key] for r in chosen), max((r.last_used for r in chosen), default=0.0)),
        )
    )


def _one_by_one(
    candidates: Sequence[Resident], missing: Mapping[str, int], worth: Mapping[Hashable, float], policy: Policy
) -> list[Resident]:
    """One after the other until it is enough: the longest idle, or what is worth least per byte."""

    def order(resident: Resident) -> tuple[float, float]:
        per_byte = worth[resident.key] if policy == "lru" else worth[resident.key] / sum(resident.claims.values())
        return per_byte, resident.last_used

    chosen: list[Resident] = []
    for resident in sorted(candidates, key=order):
        short = {pool for pool, amount in missing.items() if _freed(chosen, pool) < amount}
        if any(resident.claims.get(pool, 0) > 0 for pool in short):
            chosen.append(resident)
    return chosen


def _freed(chosen: Sequence[Resident], pool: str) -> int:
    return sum(r.claims.get(pool, 0) for r in chosen)


def _enough(chosen: Sequence[Resident], missing: Mapping[str, int]) -> bool:
    return all(_freed(chosen, pool) >= amount for pool, amount in missing.items())


@dataclass(frozen=True)
class Decision:
    """One choice of the manager, with all that it was made from.

    Attributes:
        wanted: label of the model that needed room.
        at: when, in seconds of the manager's clock.
        policy, shortfall, residents: the arguments of `plan_eviction`.
        victims: keys of what was evicted; None if nothing could make enough room, and nothing was touched.
        parked: those of the victims whose weights wait in RAM.
        free_before, free_after: bytes free in the pools concerned as the device reported them; empty for a refusal.
        trimmed: what was given back without a model leaving, and its bytes. Such a decision has no victims.
    """

    wanted: str
    at: float
    policy: Policy
    shortfall: Mapping[str, int]
    residents: tuple[Resident, ...]
    victims: tuple[Hashable, ...] | None
    free_before: Mapping[str, int] = field(default_factory=dict)
    free_after: Mapping[str, int] = field(default_factory=dict)
    trimmed: Mapping[str, int] = field(default_factory=dict)
    parked: tuple[Hashable, ...] = ()

    @property
    def scores(self) -> dict[Hashable, float]:
        """What each candidate was worth."""
        return {r.key: score(r, self.at, self.policy) for r in self.residents}

    def replay(self) -> tuple[Hashable, ...] | None:
        """The victims that the same facts lead to now; always equal to `victims`."""
        plan = plan_eviction(self.residents, self.shortfall, self.at, self.policy)
        return None if plan is None else tuple(r.key for r in plan)
