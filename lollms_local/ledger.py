"""What models turned out to take, remembered from one run to the next, so that later plans are better."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

#: figures kept; the oldest leave first
MOST_FIGURES = 500


class Ledger:
    """Measured bytes per model and prediction.

    A figure belongs to a prediction: another placement or context predicts other bytes and has a figure of its own.

    Args:
        path: file to keep them in; None = only in memory. A damaged file counts as empty.
        context: what the figures depend on besides the model, e.g. versions and the device; others are not used.
    """

    def __init__(self, path: Path | None = None, context: str = "") -> None:
        self._path, self._context = path, context
        self._figures: dict[str, dict[str, int]] | None = None
        self._lock = threading.Lock()

    def measured(self, key: Hashable, predicted: Mapping[str, int]) -> dict[str, int]:
        """Bytes per pool that this prediction turned out to be; empty if that has not been seen."""
        with self._lock:
            return dict(self._read().get(self._name(key, predicted), {}))

    def note(self, key: Hashable, predicted: Mapping[str, int], measured: Mapping[str, int]) -> None:
        """Remember the latest measurement, and write it down if there is a file and it is news."""
        if not measured:
            return
        with self._lock:
            figures, name = self._read(), self._name(key, predicted)
            before = figures.pop(name, {})
            figures[name] = {pool: int(count) for pool, count in measured.items()}
            while len(figures) > MOST_FIGURES:
                del figures[next(iter(figures))]
            if self._path is not None and before != figures[name]:
                self._write(self._path, figures)

    def _name(self, key: Hashable, predicted: Mapping[str, int]) -> str:
        facts = repr((self._context, key, sorted(predicted.items())))
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def _read(self) -> dict[str, dict[str, int]]:
        if self._figures is None:
            self._figures = _parsed(self._path) if self._path is not None else {}
        return self._figures

    def _write(self, path: Path, figures: Mapping[str, Mapping[str, int]]) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            partial.write_text(json.dumps({"measured_bytes": figures}), encoding="utf-8")
            os.replace(partial, path)
        except OSError as exc:  # a read-only models folder must not cost the user the model
            log.info("The memory figures could not be kept in %s: %s", path, exc)


def _parsed(path: Path) -> dict[str, dict[str, int]]:
    """The file's figures; what is not a figure is left out."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["measured_bytes"]
        return {
            str(name): {str(pool): int(count) for pool, count in row.items() if 0 <= int(count) < 1 << 50}
            for name, row in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        log.info("The memory figures in %s are not used: %s", path, exc)
        return {}
