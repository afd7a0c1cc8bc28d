"""Video: what our engine costs over the plain pipeline, and how much memory the parts of a film take.

    python benchmarks/bench_ttv.py            ratio of wall time, engine / plain pipeline (goal: at most 1.02)
    python benchmarks/bench_ttv.py --soak 50  resident memory after each of 50 load, film, unload cycles
    python benchmarks/bench_ttv.py --memory   peak memory of real-size VAEs and transformer blocks, random weights

The last is where `decoder_copies` and `denoiser_copies` of `engines/_video_families.py` come from. It needs Linux,
for the peak of memory, and some minutes. Run all on a calm machine.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


# --- time -----------------------------------------------------------------------------------------------------------


def middle_wan(folder: Path) -> Path:
    """A Wan of a size that works for a few seconds on two cores; 30 MB."""
    import torch
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    from tests.tiny import diffusion_parts as parts
    from tests.tiny.video import _flow_unipc

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, text_dim=32, ffn_dim=1024, num_layers=6, in_channels=16
    ).eval()
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).eval()
    pipe = WanPipeline(
        vae=vae,
        text_encoder=parts.t5_encoder(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=_flow_unipc(),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)
    return folder


def measure_ratio(rounds: int) -> float:
    """Engine and plain pipeline in turn; ratio of the medians."""
    import diffusers
    import torch

    from lollms_local.catalog import ModelSpec
    from lollms_local.devices import select_device
    from lollms_local.engines.diffusers_video import DiffusersVideo
    from lollms_local.modalities.base import Control
    from lollms_local.modalities.video import VideoLoadOptions, VideoOptions

    with tempfile.TemporaryDirectory() as name:
        path = middle_wan(Path(name) / "wan")
        spec = ModelSpec(id="middle-wan", modality="ttv", engine="diffusers_video", source=f"path:{path}")
        device, how = select_device("cpu"), VideoLoadOptions(dtype="float32")
        engine = DiffusersVideo.load(
            spec, path, device, how, DiffusersVideo.footprint(spec, path, device, how, 16 << 30)
        )
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(path), dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        options = VideoOptions(width=128, height=96, num_frames=17, steps=6, guidance=5.0, seed=1, fps=16)

        def ours() -> Any:
            return engine.generate("a heron", options, Control(on_progress=lambda progress: None)).frames

        def plain() -> Any:
            return pipe(
                prompt="a heron",
                width=128,
                height=96,
                num_frames=17,
                num_inference_steps=6,
                guidance_scale=5.0,
                generator=torch.Generator("cpu").manual_seed(1),
                output_type="np",
            ).frames

        times: dict[str, list[float]] = {"plain": [], "ours": []}
        cpu_times: dict[str, list[float]] = {"plain": [], "ours": []}  # hardly disturbed by other programs
        for work in (plain, ours):
            work()
        order = [("plain", plain), ("ours", ours)]
        for _ in range(rounds):
            order.reverse()  # whoever comes second finds warmer caches and a warmer processor
            for label, work in order:
                start, cpu = time.perf_counter(), time.process_time()
                work()
                times[label].append(time.perf_counter() - start)
                cpu_times[label].append(time.process_time() - cpu)
        engine.close()
    pairs = [ours_s / plain_s for ours_s, plain_s in zip(times["ours"], times["plain"], strict=True)]
    ratio = statistics.median(times["ours"]) / statistics.median(times["plain"])
    middle, best = ({label: pick(rows) for label, rows in times.items()} for pick in (statistics.median, min))
    for label, row in (("medians", middle), ("best", best)):
        print(f"{label}: plain {row['plain']:.3f} s, ours {row['ours']:.3f} s, ratio {row['ours'] / row['plain']:.4f}")
    cpu_ratio = statistics.median(cpu_times["ours"]) / statistics.median(cpu_times["plain"])
    print(f"ratio of medians of CPU time {cpu_ratio:.4f}")
    print(f"ratio of medians {ratio:.4f}; median of {rounds} pairs {statistics.median(pairs):.4f}")
    return ratio


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most memory that `work` added, as the kernel saw it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024


def measure_memory() -> None:
    """Peaks of one decode each, and of one pass of a transformer, against the numbers the plan uses."""
    import ctypes

    import torch

    ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 20)  # big arrays get maps of their own, so that freed is freed
    torch.manual_seed(0)
    with torch.no_grad():
        _vaes()
        _transformer()


def _vaes() -> None:
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderKLLTXVideo, AutoencoderKLWan

    from lollms_local.engines._video_decode import decode_bytes, film_bytes
    from tests.engines.test_diffusers_video_rules import COG, LTX, MODELSCOPE, WAN

    side = 192
    kl = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    cases: list[tuple[str, Any, Any, Callable[[int], tuple[int, ...]]]] = [
        ("Wan", WAN, lambda: AutoencoderKLWan(), lambda n: (1, 16, (n - 1) // 4 + 1, side // 8, side // 8)),
        ("LTX", LTX, lambda: AutoencoderKLLTXVideo(), lambda n: (1, 128, (n - 1) // 8 + 1, side // 32, side // 32)),
        ("Cog", COG, lambda: AutoencoderKLCogVideoX(), lambda n: (1, 16, (n - 1) // 4 + 1, side // 8, side // 8)),
        ("SD ", MODELSCOPE, lambda: AutoencoderKL(**kl), lambda n: (n, 4, side // 8, side // 8)),
    ]
    print(f"decode at {side}x{side}, float32: measured peak above the finished film, and what the plan says (MB)")
    for label, rules, build, shape in cases:
        vae = build().eval()
        for mode in ("whole", "chunks"):
            if mode == "chunks":
                vae.use_framewise_decoding = True
                vae.enable_slicing()
            for frames in (9, 17, 33):
                latents = torch.randn(shape(frames))
                arguments = (latents, None) if label == "LTX" else (latents,)
                peak = peak_bytes(lambda v=vae, a=arguments: v.decode(*a))
                film = side * side * frames * 3 * 4
                planned = decode_bytes(rules, side, side, frames, 4, mode)  # type: ignore[arg-type]
                copies = (peak - film) / (planned / rules.decoder_copies)
                print(
                    f"  {label} {mode:6} {frames:3} frames: {(peak - film) / 1e6:8.0f}  planned {planned / 1e6:8.0f}"
                    f"  copies {copies:5.2f}  (film {film_bytes(side, side, frames, 4) / 1e6:.0f})"
                )
                del latents
        del vae


def _transformer() -> None:
    import torch
    from diffusers import WanTransformer3DModel

    from lollms_local.engines._video_decode import film_workspace
    from tests.engines.test_diffusers_video_rules import WAN

    model = WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=2).eval()
    print("one pass of Wan 1.3B's blocks, float32: measured peak and what the plan says (MB)")
    for frames, height, width in ((9, 256, 256), (17, 256, 256), (33, 256, 256)):
        latents = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        text = torch.randn(1, 512, 4096)
        peak = peak_bytes(lambda x=latents, y=text: model(x, torch.tensor([500]), y))
        planned = film_workspace(WAN, width, height, frames, 4, 4).denoise_bytes
        tokens = max(1, width * height * frames // WAN.token_pixels)
        print(
            f"  {frames:3} frames, {tokens} tokens: {peak / 1e6:8.0f}  planned {planned / 1e6:8.0f}"
            f"  copies {peak / (tokens * WAN.denoiser_channels * 4):5.1f}"
        )


def soak(cycles: int) -> None:
    """Resident MB after each load, film, unload cycle through the host, and the slope after the tenth."""
    import json

    from benchmarks.side_by_side import over_cycles
    from lollms_local.client import connect
    from tests.tiny import video

    with tempfile.TemporaryDirectory() as place:
        binding = connect(video=str(video.save(video.wan(), Path(place) / "wan")), llm_binding_name="").ttv

        def cycle() -> None:
            assert binding.generate_video("a heron", width=32, height=32, num_frames=5, steps=1, seed=1)
            assert binding.unload_model()

        print(json.dumps(over_cycles(cycle, cycles)))


def main() -> int:
    """Run one of them; 1 if the ratio misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--soak", type=int, default=0, metavar="CYCLES")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory()
        return 0
    if arguments.soak:
        soak(arguments.soak)
        return 0
    return 0 if measure_ratio(arguments.rounds) <= 1.02 else 1


if __name__ == "__main__":
    raise SystemExit(main())
