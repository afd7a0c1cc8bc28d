"""What jobs take at their height: watched while one works alone, remembered by the shape of its work, planned with.

Nothing is refused for what was learned: it makes idle models leave before a job that will need the room, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .admission import Table
from .meter import Reading
from .residents import Slot
from .turns import Request
from .unloading import Unloader

__all__ = ["READINGS", "Learner"]

#: jobs of one shape that are watched after each load: what is known by then is known, and costs nothing any more
READINGS = 3


@dataclass(frozen=True)
class _LoadWatch:
    events: int
    before: Mapping[str, int]


class Learner:
    """Watches loads and jobs of one table.

    Args:
        table: what is in memory.
        out: the way out, for what must make room.
        held: bytes of a pool that are taken now; None = nothing is watched.
    """

    def __init__(self, table: Table, out: Unloader, held: Callable[[str], int] | None) -> None:
        self._table, self._out, self._held = table, out, held
        self._turns = table.turns
        self._warm: set[str] = set()

    # --- loads ------------------------------------------------------------------------------------------------

    def before_load(self, request: Request) -> _LoadWatch | None:
        """Look before a load. RAM is watched only where the library's own part of it is there already."""
        with self._turns.cond:
            others = any(slot.users and slot.key != request.key for slot in self._table.slots.values())
            events = self._table.events
        if self._held is None or others or request.returning or request.terms.library not in self._warm:
            return None
        return _LoadWatch(events, {pool: self._held(pool) for pool in request.needs or () if pool == "ram"})

    def after_load(self, watch: _LoadWatch | None, measured: Mapping[str, int]) -> dict[str, int]:
        """Bytes per pool that came with the model: of a card what was measured, of RAM what this process gained."""
        seen = dict(measured)
        if watch is not None and self._held is not None and watch.events == self._table.events:
            seen.update({pool: max(0, self._held(pool) - count) for pool, count in watch.before.items()})
        return seen

    # --- jobs -------------------------------------------------------------------------------------------------

    def watch(self, slot: Slot, request: Request) -> None:
        """Note whether the job that begins can be watched: it must work alone. With the lock held."""
        shape = request.shape
        if self._held is not None and shape is not None and slot.held and slot.readings[shape] < READINGS:
            request.alone_at = self._table.events if self._is_alone(slot, request) else None

    def _is_alone(self, slot: Slot, request: Request) -> bool:
        others = (other for other in self._table.slots.values() if other is not slot)
        busy = any(other.users or other.state not in ("ready", "parked") for other in others)
        return slot.leases == 1 and not busy and self._turns.loader in (None, request)

    def start(self, slot: Slot, request: Request) -> Reading | None:
        """Before a job: make the room that such work is known to need, and begin to watch if it can be."""
        if request.shape is not None and self._short(slot, request.shape):
            self._charge(slot, request.shape)
        if request.alone_at is None or self._held is None:
            return None
        return Reading(self._held, slot.held)

    def finish(self, slot: Slot, request: Request, growth: Mapping[str, int] | None, *, done: bool) -> None:
        """After a job: keep what it took, if it came to its end and was alone all the time."""
        shape = request.shape
        if shape is None or not done:
            return
        self._warm.add(slot.terms.library)
        with self._turns.cond:
            # its own lease was counted before `alone_at` was noted
            if growth is None or self._table.events != request.alone_at:
                return
            slot.readings[shape] += 1
            peak = {pool: count + growth.get(pool, 0) for pool, count in slot.held.items()}
        learned = self._table.ledger.note_peak(slot.key, slot.claims, shape, peak)
        with self._turns.cond:
            slot.learned[shape] = learned
        if self._short(slot, shape):
            self._charge(slot, shape)

    # --- consequences -----------------------------------------------------------------------------------------

    @staticmethod
    def _short(slot: Slot, shape: str) -> bool:
        """Whether work of this shape takes more than the model is charged for."""
        learned = slot.learned.get(shape)
        return learned is not None and any(count > slot.charged.get(pool, 0) for pool, count in learned.items())

    def _charge(self, slot: Slot, shape: str) -> None:
        """Charge the model for such work; what is idle leaves if the pools are overdrawn by that."""
        with self._turns.cond:
            if self._table.slots.get(slot.key) is not slot or slot.state != "ready":
                return
            for pool, count in self._table.at_most(slot.learned[shape]).items():
                slot.charged[pool] = max(slot.charged.get(pool, 0), count)
            over = {pool: -self._table.available(pool) for pool in slot.charged}
            plan = self._table.relief({pool: count for pool, count in over.items() if count > 0}, keep=slot.key)
            self._out.mark(plan)
        self._out.leave(plan)
