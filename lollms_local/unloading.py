"""Parking and closing: the only place where a model leaves memory. Runs outside the table's lock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from .admission import Admission, Table
from .eviction import Decision
from .memory import heap_for_loading, readable
from .residents import Slot

__all__ = ["RETURNED_ENOUGH", "Unloader", "in_words"]

log = logging.getLogger(__name__)

#: below this share of its measured memory, an unloaded model counts as not given back
RETURNED_ENOUGH = 0.9


@dataclass(frozen=True)
class Left:
    """What became of models that had to leave: those that are parked, and what was free before and after."""

    parked: tuple[Slot, ...] = ()
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)


class Unloader:
    """Takes models of one table out.

    Args:
        table: what is in memory.
        give_back: collects garbage and returns freed memory; called once per batch of models.
        changed: told after models left, without the lock.
    """

    def __init__(self, table: Table, give_back: Callable[[], None], changed: Callable[[], None]) -> None:
        self._table, self._give_back, self._changed = table, give_back, changed
        self._turns = table.turns

    # --- what leaves ------------------------------------------------------------------------------------------

    def mark(self, slots: Iterable[Slot], *, for_good: bool = False, ram_kept: int = 0) -> None:
        """Decide how each leaves: to RAM if it can wait there, else for good. With the lock held; `leave` follows.

        Args:
            for_good: none is to wait in RAM.
            ram_kept: bytes of RAM that whoever they make room for needs there.
        """
        for slot in slots:
            self._table.events += 1
            if not for_good and self._table.may_park(slot, ram_kept):
                slot.start_parking()
            else:
                slot.state = "closing"

    def make_idle_leave(self, pools: Iterable[str], keep: Hashable = None) -> int:
        """After memory ran out: close what is idle, and collect what the failure left even if nothing was idle."""
        freed = self.close_idle(set(pools), keep)
        if not freed:
            self._give_back()
        return freed

    def close_idle(self, pools: Set[str] | None = None, keep: Hashable = None) -> int:
        """Close everything idle in these pools (None = all); how many it were."""
        with self._turns.cond:
            idle = [
                slot
                for slot in self._table.slots.values()
                if self._table.is_idle(slot) and slot.key != keep and (pools is None or pools & slot.charged.keys())
            ]
            self.mark(idle, for_good=True)
        self.leave(idle)
        return len(idle)

    def evict(self, wanted: str, admission: Admission) -> None:
        """Carry out a plan whose victims are marked, and keep it for `explain`."""
        victims = admission.victims
        if not victims:
            return
        names = ", ".join(slot.label for slot in victims)
        log.info("%s leaves for %s (%s short).", names, wanted, in_words(admission.shortfall))
        left = self.leave(victims, watched=admission.shortfall)
        before, after = ({pool: free[pool] for pool in admission.shortfall} for free in (left.before, left.after))
        decision = Decision(
            wanted, admission.at, self._table.policy, admission.shortfall, admission.rows,
            tuple(slot.key for slot in victims), before, after, parked=tuple(slot.key for slot in left.parked),
        )  # fmt: skip
        with self._turns.cond:
            self._table.decisions.append(decision)

    # --- how --------------------------------------------------------------------------------------------------

    def leave(self, slots: Sequence[Slot], watched: Iterable[str] = ()) -> Left:
        """Park or close what is marked, give its memory back and check that it came.

        Whatever fails or interrupts it, every one of them is parked or closed afterwards, and the table knows.

        Args:
            watched: pools to look at besides those in which something must come free.
        """
        if not slots:
            return Left()
        promised: dict[str, dict[Slot, int]] = {}
        for slot in slots:
            for pool, count in slot.measured.items():
                if count:
                    promised.setdefault(pool, {})[slot] = count
        parked: list[Slot] = []
        try:
            before = self.free_bytes({*promised, *watched})
            for slot in slots:
                if slot.state == "parking" and self._park(slot):
                    parked.append(slot)
                else:
                    self.close_model(slot)
            self._give_back()
            after = self.free_bytes(before)
        finally:
            parked = self._settle(slots, parked)
        self._verify(promised, {pool: after[pool] - before[pool] for pool in promised})
        self._changed()
        return Left(tuple(parked), before, after)

    def _settle(self, slots: Sequence[Slot], parked: Sequence[Slot]) -> list[Slot]:
        """Enter into the table what has left it, and how; those that stay parked.

        One that somebody unloaded while it was being parked is closed now, and so is what an interruption left over.
        """
        with self._turns.cond:
            staying = [slot for slot in parked if not slot.unwanted]
            for slot in staying:
                slot.end_parking()
            going = [slot for slot in slots if slot not in staying]
            for slot in going:
                slot.state = "closing"
            self._turns.cond.notify_all()
        interrupted: BaseException | None = None
        for slot in going:
            try:
                self.close_model(slot)
            except BaseException as exc:  # the others must still be closed
                interrupted = exc
        with self._turns.cond:
            self._table.remove(going)
            self._turns.cond.notify_all()
        if interrupted is not None:
            raise interrupted
        return staying

    def _park(self, slot: Slot) -> bool:
        """Move its weights to RAM; False if the library could not, and it must be closed."""
        try:
            with heap_for_loading():
                slot.model.park()
        except Exception:  # a job that needs room must not fail because its neighbour's library does
            log.exception("%s could not be parked in RAM; it is unloaded.", slot.label)
            return False
        log.info("%s waits in RAM.", slot.label)
        return True

    def discard(self, slot: Slot) -> None:
        """Close a model that could not be brought in whole, and give back what it had taken."""
        if slot.model is not None:
            self.close_model(slot)
            self._give_back()

    def close_model(self, slot: Slot) -> None:
        """Close it, if there is one."""
        model, slot.model = slot.model, None
        try:
            if model is not None:
                model.close()
        except Exception:  # as above
            log.exception("%s could not be closed cleanly.", slot.label)

    def _verify(self, promised: Mapping[str, Mapping[Slot, int]], got: Mapping[str, int]) -> None:
        """Compare what came free with what was measured at the load, and say so if it is less."""
        for pool, shares in promised.items():
            count = sum(shares.values())
            for slot in shares:
                slot.history.returned = got[pool] / count
            if got[pool] < RETURNED_ENOUGH * count:
                # of RAM the system's figure moves with every other program, so there it is only a trace
                level = logging.DEBUG if pool == "ram" else logging.WARNING
                names = ", ".join(slot.label for slot in shares)
                text = "%s gave back %s of %s of %s."
                log.log(level, text, names, readable(got[pool]), readable(count), pool)

    def free_bytes(self, pools: Iterable[str]) -> dict[str, int]:
        """What is free now."""
        return {pool: self._table.pools.memory(pool).free_bytes for pool in pools}


def in_words(amounts: Mapping[str, int]) -> str:
    """Bytes per pool, for people."""
    return ", ".join(f"{readable(count)} of {pool}" for pool, count in amounts.items() if count > 0)
