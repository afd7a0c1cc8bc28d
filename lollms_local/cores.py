"""Who computes on the processor's cores: every job's share of them, and long work that lets a conversation go first.

Two jobs that compute with one thread per core each take far more than twice as long as alone: llama.cpp's threads spin
while they wait for one another, on the very core that the one they wait for needs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["CORES", "PATIENCE_S", "Batch", "Cores"]

#: a batch job waits this much longer, in all, than it has computed: so it never takes more than about twice its time
PATIENCE_S = 10.0
#: how often a job that waits looks whether its caller has stopped it
POLL_S = 0.05


class Cores:
    """The jobs of this process that compute on the CPU now, one per thread however many models it holds.

    The manager counts them in and out with their leases; engines ask for their share.

    Args:
        clock: seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._cond = threading.Condition()
        self._clock = clock
        self._jobs: dict[int, int] = {}
        self._batch: set[int] = set()
        self._waiting: set[int] = set()

    def begin(self) -> int:
        """This thread begins to compute; returns what `end` wants."""
        thread = threading.get_ident()
        with self._cond:
            self._jobs[thread] = self._jobs.get(thread, 0) + 1
        return thread

    def end(self, thread: int) -> None:
        """It has done; may be called from another thread."""
        with self._cond:
            self._jobs[thread] -= 1
            if not self._jobs[thread]:
                del self._jobs[thread]
                if self._batch:
                    self._cond.notify_all()

    def share(self, threads: int) -> int:
        """How many of `threads` a job should use now: an equal part for each that computes, at least one."""
        return max(1, threads // max(1, len(self._jobs) - len(self._waiting)))

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """For as long as it lasts, this thread's job is one that nobody sits waiting for."""
        thread = threading.get_ident()
        nested = thread in self._batch
        with self._cond:
            self._batch.add(thread)
            self._cond.notify_all()
        try:
            yield Batch(self, thread)
        finally:
            if not nested:
                with self._cond:
                    self._batch.discard(thread)

    def _conversations(self, thread: int) -> bool:
        """Whether a batch job on the CPU has others before it; one on a card has not. Called with the lock held."""
        return thread in self._jobs and any(job not in self._batch for job in self._jobs)


class Batch:
    """A batch job's side: it calls `give_way` between two steps."""

    def __init__(self, cores: Cores, thread: int) -> None:
        self._cores, self._thread = cores, thread
        self._began = cores._clock()
        self._waited_s = 0.0

    def give_way(self, check: Callable[[], None]) -> None:
        """Wait while others compute that somebody sits waiting for; no longer than the job may be held up.

        Args:
            check: called now and then while it waits; what it raises ends the wait.
        """
        cores = self._cores
        with cores._cond:
            if not cores._conversations(self._thread):
                return
            cores._waiting.add(self._thread)
        started = cores._clock()
        computed_s = started - self._began - self._waited_s
        left_s = PATIENCE_S + computed_s - self._waited_s
        try:
            while left_s > cores._clock() - started:
                check()
                with cores._cond:
                    if not cores._conversations(self._thread):
                        return
                    cores._cond.wait(POLL_S)
        finally:
            with cores._cond:
                cores._waiting.discard(self._thread)
            self._waited_s += cores._clock() - started


#: the cores are the process's own, so all managers count in one place
CORES = Cores()
