"""What a job adds to a pool while it runs: looked at many times a second, as neither kernel nor driver keeps it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

__all__ = ["EVERY_S", "Reading"]

log = logging.getLogger(__name__)

#: seconds between two looks: at 0.02 a peak of a picture on a CPU was missed by 9 %. A look takes some 20 us; on a card
#: allocators keep what they had at the peak, so that the last look shows it
EVERY_S = 0.005


class Reading:
    """The most that pools held since it was made, over what they held then.

    Args:
        held: bytes of a pool that are taken now.
        pools: which to look at.
        every_s: seconds between two looks.
    """

    def __init__(self, held: Callable[[str], int], pools: Iterable[str], every_s: float = EVERY_S) -> None:
        self._held, self._every_s = held, every_s
        self._before = {pool: held(pool) for pool in pools}
        self._most = dict(self._before)
        self._done = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._watch, name="lollms-local-meter", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int] | None:
        """Look once more and end: bytes per pool that came on top; None if they could not be seen all the time."""
        self._done.set()
        self._thread.join()
        self._look()
        return None if self._failed else {pool: most - self._before[pool] for pool, most in self._most.items()}

    def _watch(self) -> None:
        try:
            while not self._done.wait(self._every_s):
                self._look()
        except Exception as exc:  # a driver that cannot be asked now
            self._failed = True
            log.debug("What a job takes is not watched to its end: %s", exc)

    def _look(self) -> None:
        for pool, most in self._most.items():
            self._most[pool] = max(most, self._held(pool))
