"""Loading and closing: the only place where a model comes into memory, and the only one where it leaves.

Runs outside the table's lock. One load at a time in the process: by the request that is `turns.loader`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from .admission import Admission, Table
from .errors import InsufficientMemory
from .eviction import Decision
from .memory import heap_for_loading, readable
from .residents import Slot, is_out_of_memory
from .turns import Request

__all__ = ["RETURNED_ENOUGH", "Loader"]

log = logging.getLogger(__name__)

#: below this share of its measured memory, an unloaded model counts as not given back
RETURNED_ENOUGH = 0.9


@dataclass(frozen=True)
class _Loaded:
    model: Any
    load_s: float
    measured: Mapping[str, int]


class Loader:
    """Brings models of one table in and out.

    Args:
        table: what is in memory.
        give_back: collects garbage and returns freed memory; called once per batch of closed models.
        empty_cache: returns what an allocator keeps of a pool without use, and says how many bytes that were.
        changed: told after models came or left, without the lock.
    """

    def __init__(
        self,
        table: Table,
        give_back: Callable[[], None],
        empty_cache: Callable[[str], int],
        changed: Callable[[], None],
    ) -> None:
        self._table, self._give_back, self._empty_cache, self._changed = table, give_back, empty_cache, changed
        self._turns, self._clock = table.turns, table.clock

    # --- in ---------------------------------------------------------------------------------------------------

    def load(self, request: Request) -> Slot | None:
        """Make room and load. None if something turned out to be in the way; nothing is held then."""
        request.caller.loading = True
        try:
            if request.needs is None:
                request.predicted = {pool: count for pool, count in request.claims().items() if count > 0}
                request.needs = self._table.needs(request.key, request.predicted)
            self._trim(request)
            slot = self._make_room(request)
            if slot is not None:
                self._fill(slot, request)
            return slot
        finally:
            request.caller.loading = False
            with self._turns.cond:
                self._turns.loader = self._turns.torch_loader = None
                self._turns.cond.notify_all()

    def _trim(self, request: Request) -> None:
        """If room is missing, first give back what no model need leave for: allocator caches, then models' reserves."""
        table, needs = self._table, request.needs or {}
        with self._turns.cond:
            short = table.short(needs)
        if not short:
            return
        before = self._free_bytes(short)
        caches = {f"allocator cache of {pool}": self._empty_cache(pool) for pool in short}
        trimmed = {name: count for name, count in caches.items() if count > 0}
        with self._turns.cond:
            left = table.short(needs)
            trimmed.update(table.trim(left) if left else {})
        if not trimmed:
            return
        log.info("Given back for %s: %s.", request.label, _in_words(trimmed))
        after = self._free_bytes(short)
        with self._turns.cond:
            rows, now = tuple(table.rows()), self._clock()
            table.decisions.append(Decision(request.label, now, table.policy, {}, rows, (), before, after, trimmed))

    def _make_room(self, request: Request) -> Slot | None:
        """Evict until it fits, and put a row for it into the table. All turns are taken before anything is evicted."""
        turns, taken = self._turns, False
        try:
            while True:
                with turns.cond:
                    admission = self._table.admit(request, strict=not taken)
                    if admission.blocked is not None:
                        return None
                    if not taken:
                        turns.take(request)
                        turns.torch_loader = request if request.terms.uses_torch else None
                        taken = True
                    if not admission.victims:
                        slot = self._table.insert(request)
                        taken = False  # from here on the row holds the turns
                        return slot
                    _mark_closing(admission.victims)
                self._evict(request, admission)
        finally:
            if taken:
                with turns.cond:
                    turns.give(request)

    def _fill(self, slot: Slot, request: Request) -> None:
        """Load the model into its row; after any failure the row is gone."""
        try:
            loaded = self._load_model(request)
        except BaseException:
            with self._turns.cond:
                self._table.remove([slot])
                self._turns.give(request)
            raise
        with self._turns.cond:
            slot.model, slot.load_s, slot.state = loaded.model, loaded.load_s, "ready"
            self._table.correct(slot, loaded.measured)
            over = self._table.overdrawn(loaded.measured)
            plan = self._table.relief(over)
            _mark_closing(plan)
            self._turns.cond.notify_all()
        self._table.ledger.note(slot.key, slot.claims, loaded.measured)
        log.info("%s loaded in %.2f s.", slot.label, loaded.load_s)
        if over:
            log.warning("%s takes more than predicted; over the budget by %s.", slot.label, _in_words(over))
            self.close(plan)
        self._changed()

    def _load_model(self, request: Request) -> _Loaded:
        """Run the load; if memory runs out, everything idle in its pools leaves and it runs once more."""
        try:
            return self._attempt(request)
        except Exception as exc:  # no library has a class of its own for this that all share
            if not is_out_of_memory(exc):
                raise
            traceback.clear_frames(exc.__traceback__)  # they hold the tensors
        needs = request.needs or {}
        freed = self.make_idle_leave(needs)
        log.warning("Loading %s ran out of memory; %d idle models made room, once more.", request.label, freed)
        try:
            return self._attempt(request)
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
            traceback.clear_frames(exc.__traceback__)
            raise self.out_of_memory(request.label, needs, exc, freed) from exc

    def _attempt(self, request: Request) -> _Loaded:
        watched = [pool for pool in request.needs or () if pool != "ram"]
        before, started = self._free_bytes(watched), self._clock()
        with heap_for_loading():
            model = request.load()
        load_s, after = self._clock() - started, self._free_bytes(watched)
        seen = {pool: max(0, before[pool] - after[pool]) for pool in watched}
        if request.measure is not None:
            try:
                seen.update(request.measure(model))
            except BaseException:
                model.close()
                raise
        return _Loaded(model, load_s, seen)

    def out_of_memory(self, label: str, needs: Mapping[str, int], exc: BaseException, freed: int) -> InsufficientMemory:
        """The refusal after memory ran out twice: what was tried, who holds what, what would fit."""
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        with self._turns.cond:
            text = self._table.receipt(label, needs)
            hint = getattr(exc, "hint", "") or self._table.would_fit(needs)
        tried = f"Memory ran out, {freed} idle models were unloaded, and it ran out again: {first}"
        return InsufficientMemory(f"{tried} {text}", hint=hint)

    # --- out --------------------------------------------------------------------------------------------------

    def make_idle_leave(self, pools: Iterable[str], keep: Hashable = None) -> int:
        """After memory ran out: evict what is idle, and collect what the failure left even if nothing was idle."""
        freed = self.evict_idle(set(pools), keep)
        if not freed:
            self._give_back()
        return freed

    def evict_idle(self, pools: Set[str] | None = None, keep: Hashable = None) -> int:
        """Close everything idle in these pools (None = all); how many it were."""
        with self._turns.cond:
            idle = [
                slot
                for slot in self._table.slots.values()
                if self._table.is_idle(slot) and slot.key != keep and (pools is None or pools & slot.charged.keys())
            ]
            _mark_closing(idle)
        self.close(idle)
        return len(idle)

    def _evict(self, request: Request, admission: Admission) -> None:
        """Carry out a plan and keep it for `explain`."""
        victims = admission.victims
        names = ", ".join(slot.label for slot in victims)
        log.info("%s leaves for %s (%s short).", names, request.label, _in_words(admission.shortfall))
        before = self._free_bytes(admission.shortfall)
        self.close(victims)
        decision = Decision(
            request.label, admission.at, self._table.policy, admission.shortfall, admission.rows,
            tuple(slot.key for slot in victims), before, self._free_bytes(admission.shortfall),
        )  # fmt: skip
        with self._turns.cond:
            self._table.decisions.append(decision)

    def close(self, slots: Sequence[Slot]) -> None:
        """Close models that are marked "closing", give their memory back and check that it came."""
        if not slots:
            return
        promised: dict[str, int] = {}
        for slot in slots:
            for pool, count in slot.measured.items():
                promised[pool] = promised.get(pool, 0) + count
        before = self._free_bytes(promised)
        try:
            for slot in slots:
                self._close_model(slot)
            self._give_back()
        finally:
            after = self._free_bytes(promised)
            got = {pool: after[pool] - before[pool] for pool in promised}
            with self._turns.cond:
                self._table.remove(slots)
                self._turns.cond.notify_all()
        self._verify(slots, promised, got)
        self._changed()

    def _close_model(self, slot: Slot) -> None:
        model, slot.model = slot.model, None
        try:
            model.close()
        except Exception:  # a job that needs room must not fail because its neighbour's library does
            log.exception("%s could not be closed cleanly.", slot.label)

    def _verify(self, slots: Sequence[Slot], promised: Mapping[str, int], got: Mapping[str, int]) -> None:
        """Compare what came free with what was measured at the load, and say so if it is less."""
        for pool, count in promised.items():
            if not count:
                continue
            share = got[pool] / count
            for slot in slots:
                if slot.measured.get(pool):
                    slot.history.returned = share
            if share < RETURNED_ENOUGH:
                # of RAM the system's figure moves with every other program, so there it is only a trace
                level = logging.DEBUG if pool == "ram" else logging.WARNING
                names = ", ".join(slot.label for slot in slots)
                text = "%s gave back %s of %s of %s."
                log.log(level, text, names, readable(got[pool]), readable(count), pool)

    def _free_bytes(self, pools: Iterable[str]) -> dict[str, int]:
        return {pool: self._table.pools.memory(pool).free_bytes for pool in pools}


def _mark_closing(slots: Iterable[Slot]) -> None:
    for slot in slots:
        slot.state = "closing"


def _in_words(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{readable(count)} of {pool}" for pool, count in amounts.items() if count > 0)
