"""What leaves memory when something else must come in: pure functions over plain values, so it can be replayed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Decision", "Policy", "Resident", "plan_eviction", "score"]

Policy = Literal["cost", "lru"]

GIB = 1 << 30


@dataclass(frozen=True)
class Resident:
    """A model in memory, as the choice sees it.

    Attributes:
        key, label: which model.
        claims: bytes that it is charged for, per pool.
        leases: jobs that use it now; it is not evicted while there are any.
        pinned: it is never evicted.
        last_used: when a job last began or ended with it, in seconds of the manager's clock.
        load_s: what its last load took, in seconds.
        uses: how often it has been leased since it was first loaded.
        floor: the score of the latest victim when it was last used; see `score`.
    """

    key: Hashable
    label: str
    claims: Mapping[str, int]
    leases: int = 0
    pinned: bool = False
    last_used: float = 0.0
    load_s: float = 0.0
    uses: int = 0
    floor: float = 0.0


def score(resident: Resident, now: float, policy: Policy = "cost") -> float:
    """How much it is worth to keep; the lowest leaves first.

    "cost" is GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998): seconds of loading that keeping it saves, per GiB
    that it occupies, above a floor that rises with every eviction. A model nobody asks for keeps its old floor and so
    ages, however dear it once was. "lru": the longest idle leaves first.
    """
    if policy == "lru":
        return resident.last_used - now
    size_gib = max(1, sum(resident.claims.values())) / GIB
    return resident.floor + max(1, resident.uses) * resident.load_s / size_gib


def plan_eviction(
    residents: Sequence[Resident], shortfall: Mapping[str, int], now: float, policy: Policy = "cost"
) -> list[Resident] | None:
    """Choose the models whose removal frees at least `shortfall` bytes in every pool.

    Args:
        residents: everything in memory; leased and pinned ones are never chosen.
        shortfall: bytes that are missing, per pool.
        now: seconds of the clock that `last_used` was read from.

    Returns:
        The victims, cheapest first: without any one of them it would not be enough. None if it cannot be enough.
    """
    missing = {pool: amount for pool, amount in shortfall.items() if amount > 0}
    candidates = [r for r in residents if not r.leases and not r.pinned]
    candidates.sort(key=lambda r: (score(r, now, policy), r.last_used))
    chosen: list[Resident] = []
    for resident in candidates:
        short = {pool for pool, amount in missing.items() if _freed(chosen, pool) < amount}
        if not short:
            break
        if any(resident.claims.get(pool, 0) > 0 for pool in short):
            chosen.append(resident)
    if not _enough(chosen, missing):
        return None
    # A large victim chosen late can make small ones chosen before it needless: spare what costs most first.
    for resident in sorted(chosen, key=lambda r: _loss(r, now, policy), reverse=True):
        rest = [r for r in chosen if r is not resident]
        if _enough(rest, missing):
            chosen = rest
    return chosen


def _loss(resident: Resident, now: float, policy: Policy) -> float:
    return score(resident, now, policy) if policy == "lru" else max(1, resident.uses) * resident.load_s


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
        free_before, free_after: bytes free in the pools concerned as the device reported them; empty for a refusal.
    """

    wanted: str
    at: float
    policy: Policy
    shortfall: Mapping[str, int]
    residents: tuple[Resident, ...]
    victims: tuple[Hashable, ...] | None
    free_before: Mapping[str, int] = field(default_factory=dict)
    free_after: Mapping[str, int] = field(default_factory=dict)

    @property
    def scores(self) -> dict[Hashable, float]:
        """What each candidate was worth."""
        return {r.key: score(r, self.at, self.policy) for r in self.residents}

    def replay(self) -> tuple[Hashable, ...] | None:
        """The victims that the same facts lead to now; always equal to `victims`."""
        plan = plan_eviction(self.residents, self.shortfall, self.at, self.policy)
        return None if plan is None else tuple(r.key for r in plan)
