"""What models turned out to take, remembered from one run to the next, so that later plans are better."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["MOST_SHAPES", "Ledger"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Bytes = dict[str, int]
Shapes = dict[str, list[Bytes]]

#: models whose figures are kept, and shapes of work per model; the oldest leave first
MOST_MODELS, MOST_SHAPES = 500, 32
#: latest peaks of a shape that count. A neighbour's allocations during a job can only add to what is seen, and a job
#: may be shorter than another: so the middle one is taken, and the lower of two
LATEST_PEAKS = 3


class Ledger:
    """Measured bytes per model and prediction: after the load, and at the peak of a job by the shape of its work.

    A figure belongs to a prediction: another placement or context predicts other bytes and has a figure of its own.
    Processes that share the file keep each other's figures; of the same one, the latest.

    Args:
        path: file to keep them in; None = only in memory. A damaged file counts as empty.
        context: what the figures depend on besides the model, e.g. versions and the device; others are not used.
    """

    def __init__(self, path: Path | None = None, context: str = "") -> None:
        self._path, self._context = path, context
        self._loads: dict[str, Bytes] | None = None
        self._peaks: dict[str, Shapes] = {}
        #: what is known better here than in the file: a model's load, or the peaks of one shape
        self._news: set[tuple[str, str | None]] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def measured(self, key: Hashable, predicted: Mapping[str, int]) -> Bytes:
        """Bytes per pool that this prediction turned out to be after a load; empty if that has not been seen."""
        with self._lock:
            return dict(self._read().get(self._name(key, predicted), {}))

    def peaks(self, key: Hashable, predicted: Mapping[str, int]) -> dict[str, Bytes]:
        """Bytes per pool at the peak of a job, by the shape of its work."""
        with self._lock:
            self._read()
            return {shape: _middle(seen) for shape, seen in self._peaks.get(self._name(key, predicted), {}).items()}

    def note(self, key: Hashable, predicted: Mapping[str, int], measured: Mapping[str, int]) -> None:
        """Remember the latest load, and write it down if there is a file and it is news."""
        if not measured:
            return
        with self._lock:
            loads, name = self._read(), self._name(key, predicted)
            before = _put(loads, name, {pool: int(count) for pool, count in measured.items()}, MOST_MODELS)
            news = before != loads[name]
            self._news.add((name, None))
        if news:
            self._write()

    def note_peak(self, key: Hashable, predicted: Mapping[str, int], shape: str, peak: Mapping[str, int]) -> Bytes:
        """Remember a job's peak; what is planned with for work of this shape from now on."""
        with self._lock:
            self._read()
            name = self._name(key, predicted)
            shapes = self._peaks.get(name, {})
            before = shapes.get(shape, [])
            latest = [*before, {pool: int(count) for pool, count in peak.items()}][-LATEST_PEAKS:]
            _put(shapes, shape, latest, MOST_SHAPES)
            _put(self._peaks, name, shapes, MOST_MODELS)
            learned = _middle(latest)
            news = len(before) < LATEST_PEAKS or learned != _middle(before)
            self._news.add((name, shape))
        if news:
            self._write()
        return learned

    def _name(self, key: Hashable, predicted: Mapping[str, int]) -> str:
        facts = repr((self._context, key, sorted(predicted.items())))
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def _read(self) -> dict[str, Bytes]:
        if self._loads is None:
            self._loads, self._peaks = _content(self._path)
        return self._loads

    def _write(self) -> None:
        """Write the news into what other processes have written; nobody who only asks waits for the disk."""
        if self._path is None:
            return
        with self._writing:
            loads, peaks = _content(self._path)
            with self._lock:
                known, news, self._news = self._read(), self._news, set()
                for name, shape in sorted(news, key=str):
                    if shape is None and name in known:
                        _put(loads, name, known[name], MOST_MODELS)
                    elif shape is not None and shape in self._peaks.get(name, {}):
                        shapes = peaks.get(name, {})
                        _put(shapes, shape, self._peaks[name][shape], MOST_SHAPES)
                        _put(peaks, name, shapes, MOST_MODELS)
            text = json.dumps({"measured_bytes": loads, "peak_bytes": peaks})
            partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
            try:
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, self._path)
            except OSError as exc:  # a read-only models folder must not cost the user the model
                log.info("The memory figures could not be kept in %s: %s", self._path, exc)
                with self._lock:
                    self._news |= news


def _middle(seen: list[Bytes]) -> Bytes:
    return {pool: int(statistics.median_low([row.get(pool, 0) for row in seen])) for pool in seen[-1]}


def _put(table: dict[str, T], name: str, row: T, most: int) -> T | None:
    """Enter the newest row; what was there under its name."""
    before = table.pop(name, None)
    table[name] = row
    while len(table) > most:
        del table[next(iter(table))]
    return before


# --- the file: what is not a figure is left out ---------------------------------------------------------------------


def _content(path: Path | None) -> tuple[dict[str, Bytes], dict[str, Shapes]]:
    """Loads and peaks of a file; both empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        return _table(found.get("measured_bytes"), _bytes), _table(found.get("peak_bytes"), _shapes)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError, RecursionError) as exc:
        log.info("The memory figures in %s are not used: %s", path, exc)
    return {}, {}


def _table(found: Any, read: Callable[[Any], T]) -> dict[str, T]:
    table = {}
    for name, row in found.items() if isinstance(found, dict) else ():
        try:
            table[str(name)] = read(row)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as exc:
            log.info("A damaged memory figure is not used: %s", exc)
    return table


def _bytes(row: Any) -> Bytes:
    return {str(pool): int(count) for pool, count in row.items() if 0 <= int(count) < 1 << 50}


def _shapes(row: Any) -> Shapes:
    return {str(shape): [_bytes(peak) for peak in peaks][-LATEST_PEAKS:] for shape, peaks in row.items() if peaks}
