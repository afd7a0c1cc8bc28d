"""Whose turn it is: one queue for the whole process; a request leaves it only when it can have all that it needs.

Nothing is held while waiting: a request takes its model's turn, the random generators, the right to load and the room
in one step, or takes nothing. A thread that already holds a model does not wait for what other leases hold. So no two
threads can wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["PROCESS", "Blocked", "Caller", "Request", "Terms", "Turns"]

#: "load": a load or an unload is under way; it ends by itself, so anyone may wait for it. The others end when jobs end.
Reason = Literal["load", "turn", "room", "torch", "rng"]


@dataclass(frozen=True)
class Terms:
    """What an engine allows, and how long its model may idle.

    Attributes:
        concurrency: callers at a time on one loaded model; 0 = no limit.
        uses_torch: a load is exclusive against torch generation (readers and a writer); other engines keep serving.
        shares_rng: all models with this flag take turns, because they draw from one process-wide random generator.
        idle_unload_s: unload after so many idle seconds; 0 = never.
        library: models that name the same one share code that takes memory once per process.
    """

    concurrency: int = 1
    uses_torch: bool = False
    shares_rng: bool = False
    idle_unload_s: float = 0.0
    library: str = ""


class Caller:
    """A thread, as the manager knows it."""

    __slots__ = ("leases", "loading")

    def __init__(self) -> None:
        self.leases = 0
        self.loading = False


@dataclass(frozen=True)
class Blocked:
    """Why a request cannot go on, and the models it waits to see evicted: nobody behind it may take those meanwhile."""

    reason: Reason
    drain: frozenset[Hashable] = frozenset()


@dataclass(eq=False)
class Request:
    """One `lease`, from the question to the answer.

    Attributes:
        predicted: what `claims` said, once it was asked.
        needs: bytes per pool that it must have.
        learned: peaks of earlier jobs by the shape of their work. wish: bytes that work of this shape took, if more.
        returning: whether that is the plan for a return from RAM.
        anew: it could not return, so it is loaded from its files.
        shape: what the work is like: equal shapes need equal memory; None = not to be learned from.
        alone_at: the table's count of events when it got its model, if nobody else was at work then.
    """

    owner: object
    key: Hashable
    label: str
    terms: Terms
    caller: Caller
    claims: Callable[[], Mapping[str, int]]
    load: Callable[[], Any]
    measure: Callable[[Any], Mapping[str, int]] | None
    holder: str
    wait_s: float
    way_out: Callable[[], str]
    needs: dict[str, int] | None = None
    predicted: Mapping[str, int] | None = None
    learned: dict[str, dict[str, int]] = field(default_factory=dict)
    wish: Mapping[str, int] = field(default_factory=dict)
    blocked: Blocked | None = None
    returning: bool = False
    anew: bool = False
    shape: str | None = None
    alone_at: int | None = None

    @property
    def nested(self) -> bool:
        """Whether its thread already holds a model."""
        return self.caller.leases > 0


class Turns:
    """Everything that threads take turns at. Every method is called with `cond` held.

    Args:
        caller: tells who asks; default: one Caller per thread.
    """

    def __init__(self, caller: Callable[[], Caller] | None = None) -> None:
        self.cond = threading.Condition()
        self.loader: Request | None = None
        self.torch_loader: Request | None = None
        self.torch_users: dict[Caller, int] = {}
        self.rng_owner: Caller | None = None
        self.rng_depth = 0
        self.queue: list[Request] = []
        self._local = threading.local()
        self.caller = caller or self._thread

    def _thread(self) -> Caller:
        try:
            return self._local.caller  # type: ignore[no-any-return]
        except AttributeError:
            caller = self._local.caller = Caller()
            return caller

    # --- the queue --------------------------------------------------------------------------------------------

    @contextmanager
    def queued(self, request: Request) -> Iterator[None]:
        """Stand in the queue."""
        with self.cond:
            self.queue.append(request)
        try:
            yield
        finally:
            with self.cond:
                self.queue.remove(request)
                if self.loader is request:  # interrupted between taking the right to load and using it
                    self.loader = None
                self.cond.notify_all()

    def ahead(self, request: Request) -> Iterator[tuple[Request, Blocked]]:
        """Those that wait and came earlier. None for a thread that holds a model: it must not wait behind anyone."""
        if request.nested:
            return
        for other in self.queue:
            if other is request:
                return
            if other.blocked is not None:
                yield other, other.blocked

    def wait(self, request: Request, blocked: Blocked, left_s: float) -> float:
        """Sleep until something changes; the seconds that are left afterwards. Waiting for a load costs none."""
        if request.blocked != blocked:
            request.blocked = blocked
            self.cond.notify_all()  # those behind it may judge differently now
        if blocked.reason == "load":
            self.cond.wait()
            return left_s
        started = time.monotonic()
        woken = self.cond.wait(min(left_s, threading.TIMEOUT_MAX))
        return max(0.0, left_s - (time.monotonic() - started)) if woken else 0.0

    # --- turns ------------------------------------------------------------------------------------------------

    def may_use(self, request: Request) -> Blocked | None:
        """What keeps a request from using a loaded model, beside the model's own limit."""
        terms, caller = request.terms, request.caller
        if terms.uses_torch and self.torch_loader is not None:
            return Blocked("load")
        if terms.shares_rng and self.rng_owner not in (None, caller):
            return Blocked("rng")
        for _, blocked in self.ahead(request):
            if (blocked.reason == "torch" and terms.uses_torch) or (blocked.reason == "rng" and terms.shares_rng):
                return Blocked(blocked.reason)
        return None

    def may_load(self, request: Request) -> Blocked | None:
        """What keeps a request from loading, beside memory."""
        terms, caller = request.terms, request.caller
        if self.loader not in (None, request):
            return Blocked("load")
        if terms.uses_torch and any(user is not caller for user in self.torch_users):
            return Blocked("torch")
        if terms.shares_rng and self.rng_owner not in (None, caller):
            return Blocked("rng")
        return None

    def take(self, request: Request) -> None:
        """Count a lease in."""
        caller, terms = request.caller, request.terms
        caller.leases += 1
        if terms.uses_torch:
            self.torch_users[caller] = self.torch_users.get(caller, 0) + 1
        if terms.shares_rng:
            self.rng_owner = caller
            self.rng_depth += 1

    def give(self, request: Request) -> None:
        """Count a lease out."""
        caller, terms = request.caller, request.terms
        caller.leases -= 1
        if terms.uses_torch:
            left = self.torch_users.pop(caller) - 1
            if left:
                self.torch_users[caller] = left
        if terms.shares_rng:
            self.rng_depth -= 1
            if not self.rng_depth:
                self.rng_owner = None
        if self.queue:
            self.cond.notify_all()


#: torch's patches and the random generators are the process's own, so these turns are shared by all managers
PROCESS = Turns()
