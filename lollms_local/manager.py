"""The only door to memory: whoever wants a model leases it here, and what is leased stays until the lease ends.

    with manager.lease(key, label="sd-turbo", claims=lambda: {"cuda:0": size}, load=load) as model:
        ...

A model is loaded on first use and stays while the budget allows. What must leave for another is chosen by
`eviction.plan_eviction`; whether there is room, by `admission.Table`; who goes first, by `turns.Turns`;
`leasing.Leasing` gives the lease; `loading.Loader` and `unloading.Unloader` carry out what it takes. One lock guards
all of that; models are loaded, closed and measured outside it.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from . import memory as memory_module
from .admission import Table
from .board import Board
from .devices import Memory, pool_memory
from .eviction import Decision, Policy, Resident, plan_eviction
from .idle import IdleTimer
from .learning import Learner
from .leasing import Lease, Leasing
from .ledger import Ledger
from .loading import Loader
from .memory import Pools, own_bytes
from .residents import ResidentInfo, is_out_of_memory
from .turns import PROCESS, Request, Terms, Turns
from .unloading import Unloader

__all__ = ["Decision", "ModelManager", "Resident", "ResidentInfo", "Terms", "plan_eviction"]

log = logging.getLogger(__name__)

M = TypeVar("M")
R = TypeVar("R")


def _nothing(pool: str) -> int:
    """An allocator without a cache."""
    return 0


class _RanOut(Exception):
    """Memory ran out while a leased model worked."""


class ModelManager:
    """Owner of every loaded model of the process.

    Args:
        memory: total and free bytes of a pool, now.
        budgets: most bytes for models, per pool; a pool without an entry has its total less the headroom.
        headroom_bytes: bytes to leave alone, from a pool's name and total.
        wait_s: longest wait for a model, or room, that other jobs hold.
        clock: for ages and idle times.
        give_back: collects garbage and returns freed memory to the system; once per batch of closed models.
        empty_cache: gives back what allocators keep of a pool without use, and tells the bytes; default: as for `own`.
        policy: what leaves first; see `eviction.score`.
        own: bytes this process really has of a pool; default: measured if `memory` is, else not asked.
        board: where other processes look up what is in memory here; default: nowhere.
        ledger: measured sizes of earlier loads; default: those of this manager.
        turns: the queue; default: the process's own.
        timer: unload idle models from a background thread; False leaves it to calls of `sweep`.
        park: let weights that leave a card wait in RAM while there is room.
        held: bytes of a pool that are taken now, to learn what jobs take; default: as for `own`.
    """

    def __init__(
        self,
        memory: Callable[[str], Memory] = pool_memory,
        *,
        budgets: Mapping[str, int] | None = None,
        headroom_bytes: Callable[[str, int], int] = memory_module.default_headroom,
        wait_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        give_back: Callable[[], None] = memory_module.give_back,
        empty_cache: Callable[[str], int] | None = None,
        policy: Policy = "cost",
        own: Callable[[str], int] | None = None,
        board: Board | None = None,
        ledger: Ledger | None = None,
        turns: Turns = PROCESS,
        timer: bool = True,
        park: bool = True,
        held: Callable[[str], int] | None = None,
    ) -> None:
        if memory is pool_memory:
            own, held = own or own_bytes, held or memory_module.held_bytes
        if empty_cache is None:
            empty_cache = memory_module.empty_cache if memory is pool_memory else _nothing
        self._table = Table(
            Pools(memory, dict(budgets or {}), headroom_bytes, own), turns, policy, clock, ledger or Ledger(), park
        )
        self._board = board
        self._out = Unloader(self._table, give_back, self._post)
        self._learner = Learner(self._table, self._out, held, empty_cache)
        self._loader = Loader(self._table, self._out, self._learner, empty_cache, self._post)
        self._leasing = Leasing(self._table, self._loader, self._out, self._learner, self._look_again)
        self._turns, self._wait_s, self._clock = turns, wait_s, clock
        self._timer = IdleTimer(self._due_s, self.sweep, turns.cond) if timer else None

    # --- use --------------------------------------------------------------------------------------------------

    def lease(
        self,
        key: Hashable,
        *,
        label: str,
        claims: Callable[[], Mapping[str, int]],
        load: Callable[[], M],
        terms: Terms = Terms(),  # noqa: B008  frozen
        measure: Callable[[M], Mapping[str, int]] | None = None,
        holder: str = "",
        wait_s: float | None = None,
        way_out: Callable[[], str] = str,
        shape: str | None = None,
    ) -> AbstractContextManager[M]:
        """Hold a model for the length of a `with` block; it is loaded if need be.

        A thread that holds a lease may ask for the same model again, and for another one: it gets that at once or an
        error. (Two jobs of one thread on one model must not interleave: that is for the thread to see to.)

        Args:
            key: equal keys share one copy.
            label: name for people.
            claims: bytes it will need per pool; asked only when it is not loaded.
            load: makes the model; it has `close()`. Never runs beside another load.
            terms: what the engine allows.
            measure: bytes a loaded model has per pool; default: what the pool lost during the load (not for "ram").
            holder: who uses it, for `ps`.
            wait_s: instead of the manager's.
            shape: what the work is like. It is planned with what earlier work of equal shape took, and it is watched;
                None = no work that anything could be learned from.
            way_out: what would help if it does not fit, asked for after `claims`; empty = whatever the table knows.

        Raises:
            InsufficientMemory: it fits neither into an empty pool nor beside what cannot leave; nothing was evicted.
            ModelBusy: others held it, or the room for it, for too long; or at once, in a thread that holds a lease.
            Exception: whatever `claims` and `load` raise; nothing of the model is left then.
        """
        wait = self._wait_s if wait_s is None else wait_s
        caller = self._turns.caller()
        request = Request(self, key, label, terms, caller, claims, load, measure, holder, wait, way_out, shape=shape)
        return Lease(self._leasing, self._learner, request)

    def call(self, key: Hashable, fn: Callable[[M], R], **lease: Any) -> R:
        """Run `fn(model)` under a lease; if memory runs out in it, idle models make room and it runs once more.

        Args:
            key, lease: as for `lease`.

        Raises:
            InsufficientMemory: memory ran out twice; with the receipt. Otherwise as `lease`, and what `fn` raises.
        """
        try:
            return self._run(key, fn, lease)
        except _RanOut:
            pass  # leave the handler first: the exception holds the tensors
        with self._turns.cond:
            slot = self._table.slots.get(key)
            needs = dict(slot.home_charges or slot.charged) if slot is not None else {}
        freed = self._out.make_idle_leave(needs, keep=key)
        log.warning("%s ran out of memory; %d idle models made room, once more.", lease["label"], freed)
        try:
            return self._run(key, fn, lease)
        except _RanOut as ran_out:
            exc = ran_out.__cause__ or ran_out
            raise self._loader.out_of_memory(lease["label"], needs, exc, freed) from exc

    def _run(self, key: Hashable, fn: Callable[[M], R], lease: Mapping[str, Any]) -> R:
        """Run under a lease; `_RanOut` if `fn` ran out of memory."""
        with self.lease(key, **lease) as model:
            try:
                return fn(model)
            except Exception as exc:  # no library has a class of its own for this that all share
                if not is_out_of_memory(exc):
                    raise
                traceback.clear_frames(exc.__traceback__)
                raise _RanOut from exc

    def is_loaded(self, key: Hashable) -> bool:
        """Whether it is usable at once (one that is parked in RAM is not); takes no lock."""
        slot = self._table.slots.get(key)
        return slot is not None and slot.state == "ready"

    def room(self, pool: str, *, in_time: bool = False) -> int:
        """Bytes a new model could get there after everything idle and unpinned has left.

        Args:
            in_time: count what is in use now as well; it will be idle when its jobs are done.
        """
        with self._turns.cond:
            return self._table.room(pool, in_time=in_time)

    # --- freeing ----------------------------------------------------------------------------------------------

    def unload(self, key: Hashable) -> bool:
        """Free a model, pinned or not. False, and nothing changed, while it is in use; True if it is gone, or
        just leaving for good."""
        with self._turns.cond:
            slot = self._table.slots.get(key)
            if slot is None or slot.state == "closing":
                return True
            if slot.users:
                return False
            slot.unwanted = True
            if slot.state == "parking":
                return True
            self._out.mark([slot], for_good=True)
        self._out.leave([slot])
        return True

    def unload_idle(self, pool: str | None = None) -> int:
        """Free every model that is neither in use nor pinned; how many it were."""
        return self._out.close_idle(None if pool is None else {pool})

    def sweep(self) -> int:
        """Free models that have been idle longer than their `idle_unload_s`; how many it were."""
        with self._turns.cond:
            now = self._clock()
            due = [s for s in self._table.slots.values() if self._table.is_idle(s) and s.due(now) <= 0]
            self._out.mark(due, for_good=True)
        self._out.leave(due)
        return len(due)

    def pin(self, key: Hashable, pinned: bool = True) -> None:
        """Keep a model from eviction and idle unloading; also in advance, before it is loaded."""
        with self._turns.cond:
            (self._table.pinned.add if pinned else self._table.pinned.discard)(key)
            self._look_again()
            self._turns.cond.notify_all()

    def close(self) -> None:
        """Free everything; what is in use goes when its lease ends. No further leases."""
        with self._turns.cond:
            self._table.closed = True
            self._table.pinned.clear()
            for slot in self._table.slots.values():
                slot.unwanted = True
            self._look_again()
            self._turns.cond.notify_all()
        self._out.close_idle()

    # --- looking ----------------------------------------------------------------------------------------------

    def snapshot(self) -> list[ResidentInfo]:
        """What is in memory now, longest loaded first."""
        with self._turns.cond:
            now = self._clock()
            return [slot.info(slot.key in self._table.pinned, now) for slot in self._table.slots.values()]

    def explain(self) -> list[Decision]:
        """The latest decisions to evict, or not to, oldest first."""
        with self._turns.cond:
            return list(self._table.decisions)

    # --- own affairs ------------------------------------------------------------------------------------------

    def _post(self) -> None:
        if self._board is not None:
            self._board.post(self.snapshot)

    def _look_again(self) -> None:
        if self._timer is not None:
            self._timer.look_again()

    def _due_s(self) -> float:
        """Seconds until a model may have been idle long enough; a pinned one stays, whatever its age."""
        slots = [] if self._table.closed else self._table.slots.values()
        now, pinned = self._clock(), self._table.pinned
        return min((slot.due(now) for slot in slots if slot.key not in pinned), default=threading.TIMEOUT_MAX)
