"""How the measurements on a GPU are taken: loads, bytes as the driver sees them, seconds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lollms_local.catalog import ModelSpec
from lollms_local.devices import pool_memory, select_device
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatOptions, ChatRequest
from lollms_local.runtime import Job, Runtime

__all__ = ["GPU", "POOL", "PROMPT", "Peak", "chat", "free_mb", "job", "measure", "say", "warm_context"]

GPU = select_device("auto").kind == "cuda"
POOL = "cuda:0" if GPU else "ram"
PROMPT = "a heron over a lake"


def say(**row: Any) -> None:
    """One result."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def free_mb() -> float:
    """Free memory of the card as its driver sees it, in MB."""
    return pool_memory(POOL).free_bytes / 1e6


class Peak(threading.Thread):
    """The least free memory seen, fifty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.least = free_mb()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.least = min(self.least, free_mb())

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self.join()


def job(modality: Any, engine: str, path: Path, options: Any) -> Job:
    """A model by its path."""
    spec = ModelSpec(id=path.stem, modality=modality, engine=engine, source=f"path:{path}")
    return Job(spec, options, path.parent)


def warm_context() -> None:
    """Create torch's CUDA context, so that it is not counted."""
    if GPU:
        import torch

        torch.zeros(1, device="cuda").cpu()


def measure(case: str, runtime: Runtime, work: Job, use: Callable[[Any], Any], rounds: int = 2) -> Any:
    """Load, work, unload; print bytes and seconds. Returns what the last round gave."""
    warm_context()
    before = free_mb()
    _, plan = runtime.footprint(work)
    began = time.perf_counter()
    with runtime.lease(work):
        pass
    loaded_s, held = time.perf_counter() - began, before - free_mb()
    taken = []
    with Peak() as peak:
        for _ in range(rounds):
            began = time.perf_counter()
            result = runtime.call(work, use)
            taken.append(time.perf_counter() - began)
    runtime.unload(work)
    time.sleep(0.1)
    say(
        case=case, load_s=loaded_s, planned_weights_mb=plan.weights_bytes / 1e6,
        planned_total_mb=(plan.weights_bytes + plan.workspace_bytes) / 1e6, host_mb=plan.host_bytes / 1e6,
        held_mb=held, peak_mb=before - peak.least, seconds=[round(t, 3) for t in taken],
        not_returned_mb=before - free_mb(), plan=plan.reason,
    )  # fmt: skip
    return result


def chat(tokens: int, words: int) -> Callable[[Any], Any]:
    """Read about `words` short words, write `tokens` tokens."""
    request = ChatRequest(prompt="heron lake " * (words // 2))
    options = ChatOptions(n_predict=tokens, temperature=0, cache_prompt=False)

    def use(model: Any) -> Any:
        return model.generate(request, options, Control(), lambda piece: True)

    return use
