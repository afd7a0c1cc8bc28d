"""Picture engine against the plain pipeline, and memory over load/unload cycles.

    python benchmarks/bench_tti.py            overhead: seconds of the engine over seconds of the plain pipeline
    python benchmarks/bench_tti.py --soak 50  resident memory after each of 50 load, picture, unload cycles

Weights are random and built on the spot: a Stable-Diffusion-shaped pipeline of 80 million parameters in its UNet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def middle_pipeline() -> Any:
    """SD-shaped: UNet of 80 M parameters, KL VAE of three levels, tiny text encoder."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from tests.tiny import diffusion_parts as parts

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(128, 256, 384),
        layers_per_block=2,
        sample_size=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=[64, 128, 128, 128],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        layers_per_block=1,
    )
    return StableDiffusionPipeline(
        unet=unet, vae=vae, text_encoder=parts.clip_text_encoder(), tokenizer=parts.clip_tokenizer(),
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both, taken in turns so that a busy machine hurts them alike."""
    import torch
    from diffusers import DiffusionPipeline

    from lollms_local.modalities.base import Control
    from lollms_local.modalities.image import ImageOptions
    from tests.tiny.image_models import load

    model = load(folder)
    plain = DiffusionPipeline.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    options = ImageOptions(width=256, height=256, steps=6, seed=1)

    def by_plain() -> None:
        generator = torch.Generator("cpu").manual_seed(1)
        plain(prompt="a heron", width=256, height=256, num_inference_steps=6, generator=generator)

    def by_engine() -> None:
        model.generate("a heron", options, Control(lambda: False, lambda p: None))

    pairs = []
    for turn in range(rounds + 1):
        taken = {}
        for name, run in (("plain", by_plain), ("engine", by_engine))[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            run()
            taken[name] = time.process_time() - start
        if turn:  # the first round warms both up
            pairs.append((taken["plain"], taken["engine"]))
    ratios = sorted(engine / plain_s for plain_s, engine in pairs)
    return {
        "plain_cpu_s": round(statistics.median(p for p, _ in pairs), 3),
        "engine_cpu_s": round(statistics.median(e for _, e in pairs), 3),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_all": [round(r, 4) for r in ratios],
    }


def soak(folder: Path, cycles: int) -> dict[str, Any]:
    """Resident MB after each cycle, and the slope after the tenth, through the manager as a host would do it."""
    import psutil

    from lollms_local.modalities.base import Control
    from lollms_local.modalities.image import ImageLoadOptions, ImageOptions
    from lollms_local.runtime import Job, Runtime, Settings
    from tests.tiny.image_models import spec

    runtime = Runtime(Settings(models_dir=str(folder.parent)))
    job = Job(spec(folder), ImageLoadOptions(dtype="bfloat16"), folder.parent)
    options = ImageOptions(width=128, height=128, steps=1, seed=1)
    held = []
    for _ in range(cycles):
        runtime.call(job, lambda model: model.generate("a heron", options, Control()))
        assert runtime.unload(job)
        held.append(psutil.Process().memory_info().rss / 1e6)
    late = held[10:]
    slope = statistics.linear_regression(range(len(late)), late).slope if len(late) > 2 else float("nan")
    return {"rss_mb": [round(mb, 1) for mb in held], "slope_mb_per_cycle_after_10": round(slope, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--soak", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "middle"
        middle_pipeline().save_pretrained(folder)
        print(json.dumps(soak(folder, given.soak) if given.soak else overhead(folder, given.rounds), indent=2))


if __name__ == "__main__":
    main()
