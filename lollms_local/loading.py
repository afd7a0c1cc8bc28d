"""Loading: the only place where a model comes into memory, from its files or back from RAM. `unloading` is the way out.

Runs outside the table's lock. One load at a time in the process: by the request that is `turns.loader`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .admission import Admission, Table
from .errors import InsufficientMemory
from .eviction import Decision
from .learning import Learner
from .memory import heap_for_loading
from .residents import Slot, is_out_of_memory
from .turns import Blocked, Request
from .unloading import Unloader, in_words

__all__ = ["Loader"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    load_s: float
    measured: Mapping[str, int]
    alone: bool
    held: Mapping[str, int]


class Loader:
    """Brings models of one table in.

    Args:
        table: what is in memory.
        out: the way out, for what must make room.
        learner: watches what loads and jobs take.
        empty_cache: returns what an allocator keeps of a pool without use, and says how many bytes that were.
        changed: told after a model came, without the lock.
    """

    def __init__(
        self,
        table: Table,
        out: Unloader,
        learner: Learner,
        empty_cache: Callable[[str], int],
        changed: Callable[[], None],
    ) -> None:
        self._table, self._out, self._learner = table, out, learner
        self._empty_cache, self._changed = empty_cache, changed
        self._turns, self._clock = table.turns, table.clock

    def load(self, request: Request) -> Slot | None:
        """Make room and load. None if something turned out to be in the way; nothing is held then."""
        request.caller.loading = True
        try:
            self._plan(request)
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

    def _plan(self, request: Request) -> None:
        """What it needs: known for a model that waits in RAM, else from its files and from earlier loads of it."""
        with self._turns.cond:
            parked = None if request.anew else self._table.parked(request.key)
            request.returning = parked is not None
            if parked is not None:
                request.needs = dict(parked.home_charges)
                request.wish = parked.learned.get(request.shape or "", {})
                return
        if request.predicted is None:
            request.predicted = {pool: count for pool, count in request.claims().items() if count > 0}
        predicted, ledger = request.predicted, self._table.ledger
        seen = ledger.measured(request.key, predicted)
        request.needs = {pool: max(n, seen.get(pool, 0)) for pool, n in {**seen, **predicted}.items()}
        request.learned = ledger.peaks(request.key, predicted)
        request.wish = request.learned.get(request.shape or "", {})

    def _trim(self, request: Request) -> None:
        """If room is missing, first give back what no model need leave for: allocator caches, then models' reserves."""
        table, needs = self._table, request.needs or {}
        with self._turns.cond:
            short = table.short({**needs, **{pool: max(n, needs.get(pool, 0)) for pool, n in request.wish.items()}})
        if not short:
            return
        before = self._out.free_bytes(short)
        caches = {f"allocator cache of {pool}": self._empty_cache(pool) for pool in short}
        trimmed = {name: count for name, count in caches.items() if count > 0}
        with self._turns.cond:
            left = table.short(needs)
            trimmed.update(table.trim(left) if left else {})
        if not trimmed:
            return
        log.info("Given back for %s: %s.", request.label, in_words(trimmed))
        after = self._out.free_bytes(short)
        with self._turns.cond:
            rows, now = tuple(table.rows()), self._clock()
            table.decisions.append(Decision(request.label, now, table.policy, {}, rows, (), before, after, trimmed))

    def _make_room(self, request: Request) -> Slot | None:
        """Evict until it fits, and put a row for it into the table. All turns are taken before anything is evicted."""
        turns, table, taken = self._turns, self._table, False
        try:
            while True:
                with turns.cond:
                    copy = table.parked(request.key)
                    if (request.returning and copy is None) or (copy is None and request.key in table.slots):
                        request.needs = None  # somebody unloads it just now: to be planned again
                        return None
                    admission = self._admit(request, strict=not taken)
                    if admission is None or admission.blocked is not None:
                        return None
                    if not taken:
                        turns.take(request)
                        turns.torch_loader = request if request.terms.uses_torch else None
                        taken = True
                    victims = admission.victims
                    if not victims and not request.returning and copy is not None:
                        victims = (copy,)  # nothing is in the way any more of loading it from its files
                    if not victims:
                        slot = table.insert(request)
                        taken = False  # from here on the row holds the turns
                        return slot
                    self._out.mark(victims, for_good=victims == (copy,), ram_kept=table.ram_kept_for(request))
                    request.wish = {}  # it is made room for in one go
                if admission.victims:
                    self._out.evict(request.label, admission)
                else:
                    self._out.leave(victims)
        finally:
            if taken:
                with turns.cond:
                    turns.give(request)

    def _admit(self, request: Request, *, strict: bool) -> Admission | None:
        """The judgement; None for a return that there is no room for, or none without waiting, or only its own.

        Where it was on the card was planned when there was more room. Planned anew from its files it may fit elsewhere;
        what waits in RAM leaves when that is sure.
        """
        try:
            admission = self._table.admit(request, strict=strict)
        except InsufficientMemory:
            if not request.returning:
                raise
            admission = Admission(Blocked("room"))
        own = any(victim.key == request.key for victim in admission.victims)
        if request.returning and (own or (admission.blocked is not None and admission.blocked.reason == "room")):
            log.info("%s cannot return to where it was; it is planned anew.", request.label)
            request.anew, request.needs = True, None
            return None
        return admission

    def _fill(self, slot: Slot, request: Request) -> None:
        """Bring the model into its row; after any failure the row is gone."""
        try:
            loaded = self._load_model(slot, request)
        except BaseException:
            try:
                self._out.discard(slot)
            finally:
                with self._turns.cond:
                    self._table.remove([slot])
                    self._turns.give(request)
            raise
        with self._turns.cond:
            self._table.enter(slot, loaded.load_s, loaded.measured, loaded.held)
            self._learner.watch(slot, request)
            over = self._table.overdrawn(loaded.measured)
            plan = self._table.relief(over)
            self._out.mark(plan)
            self._turns.cond.notify_all()
        try:
            self._out.leave(plan)
            self._loaded(slot, request, loaded, over)
        except BaseException:  # nobody would ever give this lease back
            with self._turns.cond:
                slot.give(request, self._clock())
                self._turns.give(request)
            raise

    def _loaded(self, slot: Slot, request: Request, loaded: _Loaded, over: Mapping[str, int]) -> None:
        """Say and remember what a load took."""
        if loaded.alone and not request.returning:
            self._table.ledger.note(slot.key, slot.claims, loaded.measured)
        log.info("%s %s in %.2f s.", slot.label, "returned" if request.returning else "loaded", loaded.load_s)
        if over:
            log.warning("%s took more than predicted; over the budget by %s.", slot.label, in_words(over))
        self._changed()

    def _load_model(self, slot: Slot, request: Request) -> _Loaded:
        """Run the load; if memory runs out, everything idle in its pools leaves and it runs once more."""
        try:
            return self._attempt(slot, request)
        except Exception as exc:  # no library has a class of its own for this that all share
            if not is_out_of_memory(exc):
                raise
            traceback.clear_frames(exc.__traceback__)  # they hold the tensors
        if not request.returning:
            self._out.discard(slot)
        needs = request.needs or {}
        freed = self._out.make_idle_leave(needs)
        log.warning("Loading %s ran out of memory; %d idle models made room, once more.", request.label, freed)
        try:
            return self._attempt(slot, request)
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
            traceback.clear_frames(exc.__traceback__)
            raise self.out_of_memory(request.label, needs, exc, freed) from exc

    def _attempt(self, slot: Slot, request: Request) -> _Loaded:
        watched = [pool for pool in request.needs or () if pool != "ram"]
        watch = self._learner.before_load(request)
        before, started = self._out.free_bytes(watched), self._clock()
        with heap_for_loading():
            if request.returning:
                slot.model.unpark()
            else:
                slot.model = request.load()
        load_s, after = self._clock() - started, self._out.free_bytes(watched)
        seen = {pool: max(0, before[pool] - after[pool]) for pool in watched}
        if request.measure is not None:
            seen.update(request.measure(slot.model))
        return _Loaded(load_s, seen, *self._learner.after_load(watch, seen))

    def out_of_memory(self, label: str, needs: Mapping[str, int], exc: BaseException, freed: int) -> InsufficientMemory:
        """The refusal after memory ran out twice: what was tried, who holds what, what would fit."""
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        with self._turns.cond:
            text = self._table.receipt(label, needs)
            hint = getattr(exc, "hint", "") or self._table.would_fit(needs)
        tried = f"Memory ran out, {freed} idle models were unloaded, and it ran out again: {first}"
        error = InsufficientMemory(f"{tried} {text}", hint=hint)
        error.ran_out = True
        return error
