"""What jobs take at their height: watched while one works alone, remembered by the shape of its work, planned with.

It is a wish and not a need: what is idle makes way for it if that is enough, and nothing is refused or waits for it.
Nor does it cost a job anything but time: if it cannot be watched, it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .admission import Table
from .meter import Reading
from .residents import Slot
from .turns import Request
from .unloading import Unloader

__all__ = ["READINGS", "Learner"]

log = logging.getLogger(__name__)

#: jobs of one shape that are watched after each load: what is known by then is known, and costs nothing any more
READINGS = 3


@dataclass(frozen=True)
class _LoadWatch:
    """What there was before a load: the table's count of events, None if a job was at work; bytes held, per pool."""

    events: int | None
    before: Mapping[str, int]


class Learner:
    """Watches loads and jobs of one table.

    Args:
        table: what is in memory.
        out: the way out, for what must make room.
        held: bytes of a pool that are taken now; None = nothing is watched.
        empty_cache: gives back what allocators keep of a pool without use. What a job leaves there would hide the
            height of the next one.
    """

    def __init__(
        self, table: Table, out: Unloader, held: Callable[[str], int] | None, empty_cache: Callable[[str], int]
    ) -> None:
        self._table, self._out, self._held, self._empty_cache = table, out, held, empty_cache
        self._turns = table.turns
        self._warm: set[str] = set()

    # --- loads ------------------------------------------------------------------------------------------------

    def before_load(self, request: Request) -> _LoadWatch:
        """Look before a load."""
        with self._turns.cond:
            others = any(slot.users and slot.key != request.key for slot in self._table.slots.values())
            events = None if others else self._table.events
        # RAM only where the library's own part of it is there already
        warm = request.terms.library in self._warm and not request.returning
        return _LoadWatch(events, self._levels(request.needs or {}) if warm else {})

    def _levels(self, needs: Mapping[str, int]) -> dict[str, int]:
        """What is held of RAM, if it can be seen and the model needs any."""
        try:
            return {pool: self._held(pool) for pool in needs if pool == "ram"} if self._held is not None else {}
        except Exception:  # it is the load that matters
            log.exception("What a load takes is not watched.")
            return {}

    def after_load(self, watch: _LoadWatch, measured: Mapping[str, int]) -> tuple[bool, dict[str, int]]:
        """Whether the load was alone, and bytes per pool that came with it: of a card what was measured, of RAM what
        this process gained. Empty if it was not alone: whose they are could not be told."""
        if watch.events is None or watch.events != self._table.events:
            return False, {}
        if self._held is None:
            return True, {}
        after = self._levels(watch.before)
        return True, {**measured, **{pool: max(0, after[pool] - watch.before[pool]) for pool in after}}

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
        if request.shape is None:
            return None
        try:
            extra = self._extra(slot, request.shape)
            if extra:
                self._make_way(slot, request, extra)
            if request.alone_at is None or self._held is None:
                return None
            for pool in slot.held:
                self._empty_cache(pool)
            return Reading(self._held, slot.held)
        except Exception:  # it is the job that matters
            log.exception("The memory of a job of %s is not watched.", slot.label)
            return None

    def finish(self, slot: Slot, request: Request, reading: Reading | None, *, done: bool) -> None:
        """At the end of a job, before its lease ends: keep what it took, if it was alone all the time."""
        shape = request.shape
        try:
            growth = reading.stop() if reading is not None else None
            if shape is None or not done:
                return
            self._warm.add(slot.terms.library)
            if growth is None or self._table.events != request.alone_at:
                return
            peak = {pool: count + growth.get(pool, 0) for pool, count in slot.held.items()}
            learned = self._table.ledger.note_peak(slot.key, slot.claims, shape, peak)
            with self._turns.cond:
                slot.learn(shape, learned)
        except Exception:  # as above: its result is there
            log.exception("What a job of %s took is not kept.", slot.label)

    # --- room for work that is known to need more -------------------------------------------------------------

    @staticmethod
    def _extra(slot: Slot, shape: str) -> dict[str, int]:
        """Bytes per pool that work of this shape takes over what the model is charged for."""
        learned = slot.learned.get(shape, {})
        extra = {pool: count - slot.charged.get(pool, 0) for pool, count in learned.items()}
        return {pool: count for pool, count in extra.items() if count > 0}

    def _make_way(self, slot: Slot, request: Request, extra: dict[str, int]) -> None:
        """Evict what is idle if caches are not enough and that is. Nobody is charged: it is room, not a right to it."""
        with self._turns.cond:
            short = self._table.short(extra)
        for pool in short:
            self._empty_cache(pool)
        with self._turns.cond:
            if self._turns.loader is not None:  # it measures what is free, and its room must not be taken
                return
            admission = self._table.make_way(extra)
            self._out.mark(admission.victims, ram_kept=extra.get("ram", 0))
        self._out.evict(slot.label, admission)
        with self._turns.cond:
            if admission.victims:
                self.watch(slot, request)  # what left was an event, but it is over
