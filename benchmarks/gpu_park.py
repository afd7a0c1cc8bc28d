"""Models that wait in RAM: how fast they leave the card and come back, and how soon they answer then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_measure import GPU, POOL, PROMPT, free_mb, job, say, warm_context
from lollms_local.manager import ModelManager
from lollms_local.modalities.base import Control
from lollms_local.modalities.image import ImageLoadOptions, ImageOptions
from lollms_local.modalities.music import MusicLoadOptions, MusicOptions, MusicRequest
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions
from lollms_local.runtime import Job, Runtime, Settings

__all__ = ["park"]


class _Filler:
    """Takes nothing, and is charged for everything: whatever is idle must make room for it."""

    def close(self) -> None:
        """Nothing to free."""


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def _make_all_leave(manager: ModelManager) -> float:
    """Seconds until everything idle has left the card."""
    charged = sum(row.charged.get(POOL, 0) for row in manager.snapshot())
    claims = {POOL: manager.room(POOL) - charged // 2}
    left: list[float] = []

    def load() -> _Filler:
        left.append(time.monotonic())
        return _Filler()

    with manager.lease("filler", label="filler", claims=lambda: claims, load=load):
        pass
    manager.unload("filler")
    return left[0] - manager.explain()[-1].at


def _copy_rates(size_bytes: int) -> None:
    """What plain torch makes of the bus, from pageable and from pinned memory, in GB/s."""
    import torch

    if not GPU:
        return
    for pinned in (False, True):
        source = torch.ones(size_bytes, dtype=torch.uint8, pin_memory=pinned)
        target = torch.empty_like(source, device="cuda")
        rates: dict[str, list[float]] = {"to_card": [], "to_ram": []}
        for _ in range(3):
            for way, left, right in (("to_card", target, source), ("to_ram", source, target)):
                torch.cuda.synchronize()
                began = time.perf_counter()
                left.copy_(right)
                torch.cuda.synchronize()
                rates[way].append(size_bytes / 1e9 / (time.perf_counter() - began))
        say(case=f"plain copies, {'pinned' if pinned else 'pageable'}", **{w: sorted(r)[1] for w, r in rates.items()})


def park(models: Path, small: bool) -> None:
    """Each model: answer cold, be parked, answer again; with the same result to the bit."""
    warm_context()
    _copy_rates(1 << 20 if small else 1 << 30)
    size = {"width": 64, "height": 64} if small else {"width": 512, "height": 512}
    pictures, music = ImageOptions(**size, steps=2, seed=1), MusicOptions(duration=0.5, seed=1)
    speech = SpeechOptions(voice="v2/en_speaker_6", seed=1)
    cases: list[tuple[str, Job, Callable[[Any], Any]]] = [
        ("sdxl", job("tti", "diffusers_image", models / "sdxl", ImageLoadOptions(dtype="bfloat16")),
         lambda model: model.generate(PROMPT, pictures, Control()).images[0].pixels),
        ("musicgen-large", job("ttm", "musicgen", models / "musicgen", MusicLoadOptions()),
         lambda model: model.compose(MusicRequest([PROMPT]), music, Control()).audio.samples),
        ("bark", job("tts", "bark", models / "bark", SpeechLoadOptions()),
         lambda model: model.speak("A heron.", speech, Control()).audio.samples),
    ]  # fmt: skip
    for name, work, use in cases:
        if Path(work.spec.source.removeprefix("path:")).exists():
            _one(name, models, work, use)


def _one(name: str, models: Path, work: Job, use: Callable[[Any], Any]) -> None:
    runtime = Runtime(Settings(models_dir=str(models)))
    runtime.call(work, use)  # kernels, and the files into the system's cache
    runtime.unload(work)
    before = free_mb()
    first, cold_s = _timed(lambda: runtime.call(work, use))
    _, warm_s = _timed(lambda: runtime.call(work, use))
    away_s = _make_all_leave(runtime.manager)
    parked = sum(row.charged["ram"] for row in runtime.manager.snapshot() if row.state == "parked")
    left_mb = before - free_mb()
    again, back_s = _timed(lambda: runtime.call(work, use))
    row = runtime.manager.snapshot()[0]
    say(
        case=f"park {name}", parked_mb=parked / 1e6, left_on_card_mb=left_mb, park_s=away_s,
        park_gb_s=parked / 1e9 / away_s, return_s=row.return_s or 0.0,
        return_gb_s=parked / 1e9 / row.return_s if row.return_s else 0.0, load_s=row.load_s,
        load_over_return=row.load_s / row.return_s if row.return_s else 0.0,
        cold_answer_s=cold_s, parked_answer_s=back_s, warm_answer_s=warm_s,
        same=bool(np.array_equal(first, again)),
    )  # fmt: skip
    runtime.manager.close()
