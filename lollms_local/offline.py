"""Keep the hub's client off the network while a model loads, and onnxruntime off it altogether.

`local_files_only=True` does not hold everywhere: diffusers' single-file loader turns the network back on. Only the
client's own offline switch does. It is process-wide, so it is set for the time of a load and then put back: other
parts of the host may be downloading on purpose.

onnxruntime (1.32 on Linux and macOS) sends usage data from the moment it is first used, and writes an identifier of the
machine into the user's cache folder. It reads its switch once, so the switch is left on.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["offline", "user_is_offline"]

_lock = threading.RLock()
_depth = 0
_before: dict[str, str | None] = {}


@contextmanager
def offline() -> Iterator[None]:
    """Within this block no library reaches a model hub. Blocks may nest and overlap between threads."""
    global _depth
    with _lock:
        if _depth == 0:
            _enter()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _leave()


def user_is_offline() -> bool:
    """True if the user forbids the network by HF_HUB_OFFLINE, whatever a load that is under way has set."""
    with _lock:
        value = _before.get("HF_HUB_OFFLINE") if _depth else os.environ.get("HF_HUB_OFFLINE")
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def _enter() -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # whoever wants to send it has set it to 0
    _before["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        _before["constant"] = "1" if constants.HF_HUB_OFFLINE else ""
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _leave() -> None:
    value = _before.pop("HF_HUB_OFFLINE")
    if value is None:
        os.environ.pop("HF_HUB_OFFLINE", None)
    else:
        os.environ["HF_HUB_OFFLINE"] = value
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        # imported during the block: it read our switch, so what it should say comes from the user's own value
        was = _before.pop("constant", None)
        user_wants = (value or "").upper() in ("1", "ON", "YES", "TRUE")
        constants.HF_HUB_OFFLINE = bool(was) if was is not None else user_wants  # type: ignore[attr-defined]
