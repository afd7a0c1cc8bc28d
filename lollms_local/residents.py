"""The manager's table: one row per model in memory, and the frozen pictures of it that others may see."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .eviction import Resident
from .ledger import MOST_SHAPES
from .memory import Charge, Pools, readable
from .turns import Caller, Request, Terms

__all__ = ["ResidentInfo", "Slot", "is_out_of_memory", "receipt"]

log = logging.getLogger(__name__)

#: "parking": its weights are on their way to RAM; "parked": they wait there
State = Literal["loading", "ready", "parking", "parked", "closing"]


@dataclass(frozen=True)
class ResidentInfo:
    """One row for `ps`. Times are seconds of the manager's clock.

    Attributes:
        key, label: which model.
        state: "loading", "ready", "parking", "parked" (its weights wait in RAM) or "closing".
        claims: predicted bytes per pool. measured: bytes seen to go at the load. charged: what the budget pays.
        peak: bytes seen at the height of a job, where one could be watched alone.
        leases, holders: jobs that use it now, and who they are.
        pinned: never evicted.
        loaded_at, last_used: when. idle_s: seconds since it was last used; 0 while in use.
        load_s: seconds its load took. uses: leases since it was first loaded.
        return_s: seconds that its latest return from RAM took; None if it never was parked.
        idle_unload_s: it leaves after so many idle seconds; 0 = never.
        returned: share of its memory that was measured as free after its last unload; None if it has not been seen.
    """

    key: Hashable
    label: str
    state: State
    claims: Mapping[str, int]
    measured: Mapping[str, int]
    peak: Mapping[str, int]
    charged: Mapping[str, int]
    leases: int
    holders: tuple[str, ...]
    pinned: bool
    loaded_at: float
    last_used: float
    idle_s: float
    load_s: float
    uses: int
    idle_unload_s: float
    returned: float | None
    return_s: float | None = None


#: weight of the latest interval between uses against all before it
LATEST = 0.3


@dataclass
class History:
    """What is remembered of a model when it is not in memory.

    Attributes:
        uses: leases so far. returned, return_s: see `ResidentInfo`.
        last_used: when a job last began or ended with it; None = never.
        unasked_s: how long the manager had been in use when this model was first asked for.
        interval_s: mean time between uses, the latest weighing most; a run of uses of this model alone is one use.
            Until there were two it is `unasked_s`.
    """

    unasked_s: float = 0.0
    uses: int = 0
    returned: float | None = None
    return_s: float | None = None
    last_used: float | None = None
    _mean_s: float | None = None

    @property
    def interval_s(self) -> float:
        return self.unasked_s if self._mean_s is None else self._mean_s

    def use(self, now: float, after_another: bool) -> None:
        """Count a use in; `after_another` says whether another model was used since its last one."""
        self.uses += 1
        if self.last_used is not None and after_another:
            gap = now - self.last_used
            self._mean_s = gap if self._mean_s is None else self._mean_s + LATEST * (gap - self._mean_s)
        self.last_used = now


@dataclass(eq=False)
class Slot:
    """A row of the table. Changed only with the table's lock held.

    Attributes:
        held: bytes per pool that came with it, so far as that could be seen; a job's peak counts on top.
        learned: peaks of earlier jobs by the shape of their work. readings: how many were taken of each since the load.
        home_charges: while it is parked, what it is charged for when it is back; empty otherwise.
        unwanted: it is to go for good; one that is just being parked goes when it is.
    """

    key: Hashable
    label: str
    terms: Terms
    claims: Mapping[str, int]
    charged: dict[str, int]
    history: History
    loaded_at: float
    last_used: float
    state: State = "loading"
    model: Any = None
    measured: dict[str, int] = field(default_factory=dict)
    load_s: float = 0.0
    users: dict[Caller, int] = field(default_factory=dict)
    holders: Counter[str] = field(default_factory=Counter)
    held: dict[str, int] = field(default_factory=dict)
    learned: dict[str, dict[str, int]] = field(default_factory=dict)
    readings: Counter[str] = field(default_factory=Counter)
    home_charges: dict[str, int] = field(default_factory=dict)
    unwanted: bool = False
    _parked: tuple[int, int] = (-1, 0)

    @property
    def leases(self) -> int:
        return sum(self.users.values())

    @property
    def on_cores(self) -> bool:
        """Whether it computes on the CPU: all it has is RAM. (Apple's GPUs look the same from here.)"""
        return self.charged.keys() <= {"ram"}

    @property
    def is_leaving(self) -> bool:
        """Whether its memory comes free without anyone's doing."""
        return self.state in ("closing", "parking")

    def has_turn_for(self, caller: Caller) -> bool:
        """Whether one more caller may use it. A thread that uses it may come again: it cannot race with itself."""
        limit = self.terms.concurrency
        return not limit or len(self.users) < limit or caller in self.users

    def take(self, request: Request, now: float, after_another: bool) -> None:
        self.users[request.caller] = self.users.get(request.caller, 0) + 1
        self.holders[request.holder] += 1
        self.history.use(now, after_another)
        self.last_used = now

    def give(self, request: Request, now: float) -> None:
        left = self.users.pop(request.caller) - 1
        if left:
            self.users[request.caller] = left
        self.holders -= Counter({request.holder: 1})
        self.last_used = self.history.last_used = now

    def learn(self, shape: str, peak: dict[str, int]) -> None:
        """Note what work of a shape takes; the oldest shapes are forgotten."""
        self.readings[shape] += 1
        self.learned.pop(shape, None)
        self.learned[shape] = peak
        while len(self.learned) > MOST_SHAPES:
            oldest = next(iter(self.learned))
            del self.learned[oldest], self.readings[oldest]

    def due(self, now: float) -> float:
        """Seconds until its idle time is over; infinite for one that stays."""
        idle = self.terms.idle_unload_s
        if idle <= 0 or self.state == "closing":
            return threading.TIMEOUT_MAX
        return idle if self.users or self.state in ("loading", "parking") else self.last_used + idle - now

    def spare(self) -> Mapping[str, int]:
        """Bytes per pool that the model could do without; most engines have none. See `engines.Trimmable`."""
        return self.model.spare_bytes if self.state == "ready" and hasattr(self.model, "trim") else {}

    def parked_bytes(self) -> int:
        """RAM that its weights would take if they waited there; 0 if they cannot. See `engines.Parkable`."""
        if self.users or self.state != "ready" or not hasattr(self.model, "park"):
            return 0
        if self._parked[0] != self.history.uses:  # a job may have changed it, and to count takes milliseconds
            try:
                count = self.model.parked_bytes
            except Exception:  # a job that needs room must not fail because its neighbour's library does
                log.exception("%s cannot tell what it would take in RAM; it is not parked.", self.label)
                count = 0
            self._parked = (self.history.uses, count)
        return self._parked[1]

    def start_parking(self) -> None:
        """From now on its weights' copy in RAM is charged as well."""
        self.home_charges, count = dict(self.charged), self.parked_bytes()
        self.charged["ram"] = self.charged.get("ram", 0) + count
        self.state = "parking"

    def end_parking(self) -> None:
        """Its weights are in RAM, and nothing else is left of it."""
        self.charged = {"ram": self.charged["ram"] - self.home_charges.get("ram", 0)}
        self.measured = {}
        self.state = "parked"

    def start_return(self) -> None:
        """Until its weights are back they may be in both places."""
        for pool, count in self.home_charges.items():
            self.charged[pool] = self.charged.get(pool, 0) + count
        self.state = "loading"

    def end_return(self) -> None:
        """Its weights are back."""
        self.charged, self.home_charges = self.home_charges, {}

    def charge(self, pool: str) -> Charge:
        return Charge(self.charged.get(pool, 0), self.measured.get(pool, 0))

    def resident(self, pinned: bool, may_park: bool = False) -> Resident:
        back_s = self.history.return_s if may_park else None
        return Resident(
            self.key, self.label, dict(self.charged), self.leases, pinned,
            self.last_used, self.load_s if back_s is None else back_s, self.history.interval_s,
        )  # fmt: skip

    @property
    def peak(self) -> dict[str, int]:
        """The most that any job is known to need, per pool."""
        pools = {pool for seen in self.learned.values() for pool in seen}
        return {pool: max(seen.get(pool, 0) for seen in self.learned.values()) for pool in sorted(pools)}

    def info(self, pinned: bool, now: float) -> ResidentInfo:
        return ResidentInfo(
            key=self.key, label=self.label, state=self.state,
            claims=dict(self.claims), measured=dict(self.measured), peak=self.peak, charged=dict(self.charged),
            leases=self.leases, holders=tuple(sorted(h for h in self.holders if h)), pinned=pinned,
            loaded_at=self.loaded_at, last_used=self.last_used, idle_s=0.0 if self.users else now - self.last_used,
            load_s=self.load_s, uses=self.history.uses, idle_unload_s=self.terms.idle_unload_s,
            returned=self.history.returned, return_s=self.history.return_s,
        )  # fmt: skip


def receipt(label: str, needs: Mapping[str, int], pools: Pools, slots: Iterable[Slot], pinned: set[Hashable]) -> str:
    """Who holds what: one sentence per pool."""
    rows = list(slots)
    parts = []
    for pool, count in needs.items():
        free = pools.memory(pool).free_bytes
        held = [
            f"{slot.label} {readable(slot.charged[pool])} ({_how(slot, slot.key in pinned)})"
            for slot in rows
            if slot.charged.get(pool)
        ]
        parts.append(
            f"{label} needs {readable(count)} of {pool}; models may have {readable(pools.budget(pool))} there, "
            f"{readable(free)} are free now, and models hold: {', '.join(held) or 'nothing'}."
        )
    return " ".join(parts)


def _how(slot: Slot, pinned: bool) -> str:
    if slot.users:
        by = ", ".join(sorted(h for h in slot.holders if h))
        return f"in use by {by}" if by else "in use"
    if slot.state != "ready":
        return slot.state
    return "pinned" if pinned else "idle"


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether an error says that memory ran out, in the words of any of the libraries."""
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(exc, RuntimeError) and any(word in str(exc).lower() for word in words)
