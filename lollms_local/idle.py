"""A background thread that unloads idle models, and that exists only while there is a model it could unload."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

__all__ = ["IdleTimer"]

log = logging.getLogger(__name__)


class IdleTimer:
    """Calls `sweep` when a model may be due.

    Args:
        due_s: seconds until the next model may be due; TIMEOUT_MAX for never.
        sweep: unloads what is due.
        lock: held while `due_s` is asked and the thread decides to end.
    """

    def __init__(self, due_s: Callable[[], float], sweep: Callable[[], object], lock: threading.Condition) -> None:
        self._due_s, self._sweep, self._lock = due_s, sweep, lock
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def look_again(self) -> None:
        """Something may be due sooner than was thought, or never again. Called with the lock held."""
        self._wake.set()
        if self._thread is None and self._due_s() < threading.TIMEOUT_MAX:
            self._thread = threading.Thread(target=self._run, name="lollms-local-idle", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wake.clear()
                due = self._due_s()
                if due >= threading.TIMEOUT_MAX:
                    self._thread = None
                    return
            if due > 0:
                self._wake.wait(due)
            try:
                self._sweep()
            except Exception:  # the next model's time must still be kept
                log.exception("An idle model could not be unloaded cleanly.")
