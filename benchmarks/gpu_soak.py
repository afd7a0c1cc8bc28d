"""All models on one GPU under a budget of 60 % of what they take together: random requests from four threads."""

from __future__ import annotations

import importlib.util
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_measure import GPU, POOL, PROMPT, Peak, chat, free_mb, job, say
from lollms_local.devices import GIB
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatLoadOptions
from lollms_local.modalities.image import ImageLoadOptions, ImageOptions
from lollms_local.modalities.music import MusicLoadOptions, MusicOptions, MusicRequest
from lollms_local.runtime import Job, Runtime, Settings

__all__ = ["soak"]


def soak(models: Path, small: bool, seconds: float = 75.0) -> None:
    """Random requests from four threads under a budget of 60 % of what the models take together."""
    size = {"width": 64, "height": 64} if small else {"width": 512, "height": 512}
    pictures, music = ImageOptions(**size, steps=2, seed=1), MusicOptions(duration=0.5, seed=1)
    cases: list[tuple[Job, Callable[[Any], Any]]] = [
        (job("tti", "diffusers_image", models / "sdxl", ImageLoadOptions(dtype="bfloat16")),
         lambda model: model.generate(PROMPT, pictures, Control())),
        (job("ttm", "musicgen", models / "musicgen", MusicLoadOptions()),
         lambda model: model.compose(MusicRequest([PROMPT]), music, Control())),
    ]  # fmt: skip
    if (models / "llama8b.gguf").exists() and _has_llama():
        load = ChatLoadOptions(ctx_size=1024 if small else 8192)
        cases.append((job("llm", "llama_cpp", models / "llama8b.gguf", load), chat(16, 40)))
    probe = Runtime(Settings(models_dir=str(models)))
    sizes = [probe.footprint(work)[1].claims(POOL)[POOL] for work, _ in cases]
    budget = max(sum(sizes) * 0.6, max(sizes) * 1.02)
    key = "vram_budget_gb" if GPU else "ram_budget_gb"
    runtime = Runtime(Settings(models_dir=str(models), wait_s=300, **{key: budget / GIB}))
    for work, use in cases[:2] if GPU else cases:
        runtime.call(work, use)  # CUDA contexts and imports
    runtime.manager.unload_idle()
    time.sleep(0.2)
    before, until = free_mb(), time.monotonic() + (5 if small else seconds)
    failures: list[str] = []
    counts = [0] * len(cases)
    over = samples = 0

    def worker(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < until:
            which = chance.randrange(len(cases))
            work, use = cases[which]
            try:
                runtime.call(work, use)
                counts[which] += 1
            except Exception as exc:  # a soak counts whatever goes wrong
                failures.append(f"{type(exc).__name__}: {str(exc)[:200]}")

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(4)]
    with Peak() as peak:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
            rows = runtime.manager.snapshot()
            samples += 1
            over += sum(row.charged.get(POOL, 0) for row in rows) > budget * 1.001
        evictions = len(runtime.manager.explain())
    runtime.manager.unload_idle()
    time.sleep(0.2)
    say(
        case="soak", models_mb=[round(s / 1e6) for s in sizes], budget_mb=budget / 1e6, requests=counts,
        failures=len(failures), kinds=sorted(set(failures))[:4], evictions=evictions, samples=samples,
        ledger_over=over, most_taken_mb=before - peak.least, not_returned_mb=before - free_mb(),
    )  # fmt: skip


def _has_llama() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None
