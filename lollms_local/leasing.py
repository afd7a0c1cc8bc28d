"""A lease from the question to its end: who gets a model, when, and what happens around the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, TypeVar

from .admission import Table
from .cores import CORES
from .errors import ModelBusy
from .learning import Learner
from .loading import Loader
from .meter import Reading
from .residents import Slot
from .turns import Blocked, Request
from .unloading import Unloader

__all__ = ["Lease", "Leasing"]

M = TypeVar("M")


class Leasing:
    """Gives and takes leases of one table.

    Args:
        table: what is in memory. loader, out: the ways in and out. learner: is told of every job.
        look_again: told when a model may become idle sooner than it seemed.
    """

    def __init__(
        self, table: Table, loader: Loader, out: Unloader, learner: Learner, look_again: Callable[[], None]
    ) -> None:
        self._table, self._loader, self._out, self._learner = table, loader, out, learner
        self._turns, self._clock, self._look_again = table.turns, table.clock, look_again

    def acquire(self, request: Request) -> Slot:
        """A lease on the model, loaded if need be. Raises as `ModelManager.lease` says."""
        turns = self._turns
        request.caller = turns.caller()  # the thread that enters the block counts
        with turns.cond:
            slot = self._table.slots.get(request.key)
            if slot is not None and not turns.queue and self._grant(slot, request) is None:
                return slot
        if request.caller.loading:
            raise ModelBusy(f"{request.label} was asked for from inside the loading of another model.")
        left_s = request.wait_s
        with turns.queued(request):
            while True:
                with turns.cond:
                    blocked = self._next(request)
                    if blocked is not None:
                        if blocked.reason != "load" and (request.nested or left_s <= 0):
                            raise self._table.busy(request, blocked)
                        left_s = turns.wait(request, blocked, left_s)
                        request.anew = False  # what waits in RAM may return now
                        continue
                    request.blocked = None
                    if turns.loader is not request:
                        return self._table.slots[request.key]
                slot = self._loader.load(request)
                if slot is not None:
                    self._tell_timer(slot, request)
                    return slot

    def _tell_timer(self, slot: Slot, request: Request) -> None:
        try:
            with self._turns.cond:
                self._look_again()
        except BaseException:  # nobody would ever give this lease back
            self.release(slot, request)
            raise

    def _next(self, request: Request) -> Blocked | None:
        """A step forward: a lease if the model is loaded, else the right to load it. If neither: what is in the way."""
        if self._table.closed:
            raise ModelBusy("The model manager has been closed.", hint="Use the process's current Runtime.")
        slot = self._table.slots.get(request.key)
        if slot is not None and slot.state != "parked":
            return self._grant(slot, request)
        if self._turns.loader is not None:
            return Blocked("load")
        if slot is not None and not request.anew:
            blocked = self._turns.may_load(request)  # whether there is room for a return is judged with the plan for it
        else:
            blocked = self._table.admit(request).blocked if request.needs is not None else None
        if blocked is None:
            self._turns.loader = request
        return blocked

    def _grant(self, slot: Slot, request: Request) -> Blocked | None:
        """Lease a loaded model, if nothing and nobody is in the way."""
        if slot.state != "ready" or self._table.closed:
            return Blocked("load")
        blocked = self._turns.may_use(request)
        if blocked is not None:
            return blocked
        if not slot.has_turn_for(request.caller):
            return Blocked("turn")
        for other, why in self._turns.ahead(request) if self._turns.queue else ():
            if (
                other.owner is request.owner
                and other.key == request.key
                and why.reason != "load"
                and slot.terms.concurrency
            ):
                return Blocked("turn")
            if other.owner is request.owner and request.key in why.drain:
                return Blocked("room")
        if slot.terms.idle_unload_s != request.terms.idle_unload_s:
            slot.terms = request.terms  # the latest word counts
            self._look_again()
        self._turns.take(request)
        self._table.take(slot, request)
        self._learner.watch(slot, request)
        return None

    def release(self, slot: Slot, request: Request) -> None:
        """Give it up; after the manager was closed the last one frees the model."""
        with self._turns.cond:
            slot.give(request, self._clock())
            self._turns.give(request)
            last = [slot] if self._table.closed and not slot.users and slot.state == "ready" else []
            self._out.mark(last, for_good=True)
        self._out.leave(last)


class Lease(AbstractContextManager[M], Generic[M]):
    """What `ModelManager.lease` returns. Good for one `with` block."""

    __slots__ = ("_job", "_learner", "_leasing", "_reading", "_request", "_slot")

    def __init__(self, leasing: Leasing, learner: Learner, request: Request) -> None:
        self._leasing, self._learner, self._request = leasing, learner, request
        self._slot: Slot | None = None
        self._job: int | None = None
        self._reading: Reading | None = None

    def __enter__(self) -> M:
        slot = self._slot = self._leasing.acquire(self._request)
        try:
            self._reading = self._learner.start(slot, self._request)
            if slot.on_cores:
                self._job = CORES.begin()
        except BaseException as exc:  # an interruption
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise
        return slot.model  # type: ignore[no-any-return]

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        slot, self._slot = self._slot, None
        job, self._job = self._job, None
        reading, self._reading = self._reading, None
        if job is not None:
            CORES.end(job)
        if slot is None:
            return
        try:
            self._learner.finish(slot, self._request, reading, done=exc is None)
        finally:
            self._leasing.release(slot, self._request)
