"""What each process has in memory, for people at another one's command line: one small file per process.

Written when a model comes or leaves, never on a plain use, so it costs nothing where speed counts. The file lies beside
the models; a process that has ended is recognised and its file removed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .residents import ResidentInfo

__all__ = ["Board", "Entry", "Posting"]

log = logging.getLogger(__name__)

#: a file of ours is far smaller
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One model of another process, as it was when the process last loaded or freed something.

    Attributes:
        model: its name. pinned: never evicted.
        charged: bytes per pool that its budget pays. measured: bytes seen to go at the load.
        peak: bytes seen at the height of a job, where one could be watched.
        returned: share of its memory that came free when it last left; None if that has not been seen.
        load_s: seconds that its load took. uses: how often it had been used.
        state: "ready", or "parked" while its weights wait in RAM.
    """

    model: str
    charged: dict[str, int]
    measured: dict[str, int]
    load_s: float
    uses: int
    pinned: bool
    state: str = "ready"
    peak: dict[str, int] = field(default_factory=dict)
    returned: float | None = None


@dataclass(frozen=True)
class Posting:
    """All models of one process; `started` (seconds since the epoch) tells it from a later one with its number."""

    pid: int
    started: float
    entries: tuple[Entry, ...]


class Board:
    """Where processes post what they hold.

    Args:
        folder: one for all processes that use the same models; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._usable = True
        self._lock = threading.Lock()

    def post(self, look: Callable[[], Iterable[ResidentInfo]]) -> None:
        """Replace what this process has posted by what `look` finds.

        A folder that cannot be written to ends the posting, and nothing else.
        """
        with self._lock:
            if self._usable:
                self._post(look())

    def _post(self, rows: Iterable[ResidentInfo]) -> None:
        entries = [asdict(_entry(row)) for row in rows if row.state in ("ready", "parked")]
        pid = os.getpid()
        target, started = self._folder / f"{pid}.json", _started(pid)
        try:
            if not entries or started is None:
                target.unlink(missing_ok=True)
                return
            if not target.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                self.read()  # processes that were killed could not take theirs away
            part = target.with_suffix(".part")
            part.write_text(json.dumps({"pid": pid, "started": started, "entries": entries}), encoding="utf-8")
            os.replace(part, target)
        except OSError as exc:
            self._usable = False
            log.debug("What is in memory is not posted in %s: %s", self._folder, exc)

    def read(self) -> list[Posting]:
        """What all living processes have posted, by number; files of others are removed."""
        postings = []
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []:
            posting = _posting(path)
            if posting is not None and _started(posting.pid) == posting.started:
                postings.append(posting)
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                log.debug("%s could not be removed: %s", path, exc)
        return sorted(postings, key=lambda posting: posting.pid)


def _entry(row: ResidentInfo) -> Entry:
    return Entry(
        row.label, dict(row.charged), dict(row.measured), round(row.load_s, 3), row.uses, row.pinned, row.state,
        dict(row.peak), None if row.returned is None else round(row.returned, 3),
    )  # fmt: skip


def _started(pid: int) -> float | None:
    """When a process began; None if there is none of that number."""
    import psutil

    try:
        return round(float(psutil.Process(pid).create_time()), 2)
    except psutil.Error:
        return None


def _posting(path: Path) -> Posting | None:
    """A file's content; None if it is not one of ours."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(
            Entry(
                str(e["model"]), _bytes(e["charged"]), _bytes(e["measured"]), float(e["load_s"]), int(e["uses"]),
                bool(e["pinned"]), str(e.get("state", "ready")), _bytes(e.get("peak", {})),
                None if e.get("returned") is None else float(e["returned"]),
            )
            for e in found["entries"]
        )  # fmt: skip
        return Posting(int(found["pid"]), float(found["started"]), entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _bytes(found: Any) -> dict[str, int]:
    return {str(pool): int(count) for pool, count in found.items()}
