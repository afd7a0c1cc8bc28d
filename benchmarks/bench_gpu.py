"""On a GPU, with models of published size and random weights: placement, memory, speed beside the plain library.

    python benchmarks/bench_gpu.py --models /tmp/full sdxl musicgen bark wan llama soak park

Each case runs in a process of its own and prints one JSON line per measurement. Memory is read from the driver (what is
free on the card), so that it counts for llama.cpp too; the CUDA context itself, which a process keeps, is left out.
`--small` rehearses everything in miniature, on a CPU if there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import full_size
from benchmarks.gpu_measure import GPU, PROMPT, chat, job, measure, say
from benchmarks.gpu_park import park
from benchmarks.gpu_soak import soak
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatLoadOptions
from lollms_local.modalities.image import ImageLoadOptions, ImageOptions
from lollms_local.modalities.music import MusicLoadOptions, MusicOptions, MusicRequest
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions
from lollms_local.modalities.video import VideoLoadOptions, VideoOptions
from lollms_local.runtime import Runtime, Settings

# --- pictures and films -----------------------------------------------------------------------------------------------


def plain_pipeline(folder: Path, call: dict[str, Any]) -> tuple[Any, list[float]]:
    """The plain pipeline's last result and seconds of two runs."""
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder), dtype=torch.bfloat16, local_files_only=True)
    pipe = pipe.to("cuda" if GPU else "cpu")
    pipe.set_progress_bar_config(disable=True)
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        result = pipe(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(1), output_type="np", **call)
        taken.append(round(time.perf_counter() - began, 3))
    return result, taken


OFFLOADS: list[dict[str, Any]] = [{"placement": "model_offload"}, {"placement": "group_offload"}]
PLACEMENTS: list[dict[str, Any]] = [{}, {"vae_tiling": "on"}, *(OFFLOADS if GPU else [])]


def sdxl(models: Path, small: bool) -> None:
    """A picture of 1024x1024 in 10 steps."""
    import numpy as np

    folder = models / "sdxl"
    size = {"width": 64, "height": 64} if small else {"width": 1024, "height": 1024}
    options = ImageOptions(**size, steps=10, seed=1, guidance=5.0)
    runtime = Runtime(Settings(models_dir=str(models)))

    def picture(model: Any) -> Any:
        return model.generate(PROMPT, options, Control()).images[0].pixels

    for how in PLACEMENTS:
        load = ImageLoadOptions(dtype="bfloat16", **how)
        measure(f"sdxl {how or 'auto'}", runtime, job("tti", "diffusers_image", folder, load), picture)
    exact = ImageLoadOptions(dtype="bfloat16", channels_last=False, tf32=False)
    ours = measure("sdxl untuned", runtime, job("tti", "diffusers_image", folder, exact), picture)
    result, taken = plain_pipeline(folder, {**size, "num_inference_steps": 10, "guidance_scale": 5.0})
    theirs = (result.images[0] * 255).round().astype("uint8")
    say(case="sdxl plain pipeline", seconds=taken, same_pixels=float(np.mean(ours == theirs)))


def wan(models: Path, small: bool) -> None:
    """81 frames of 832x480 in 4 steps."""
    folder = models / "wan"
    size = {"width": 32, "height": 32, "num_frames": 5} if small else {"width": 832, "height": 480, "num_frames": 81}
    options = VideoOptions(**size, steps=4, seed=1, guidance=5.0)
    runtime = Runtime(Settings(models_dir=str(models)))

    def film(model: Any) -> Any:
        return model.generate(PROMPT, options, Control()).frames.shape

    for how in PLACEMENTS:
        load = VideoLoadOptions(dtype="bfloat16", **how)
        work = job("ttv", "diffusers_video", folder, load)
        measure(f"wan {how or 'auto'}", runtime, work, film, rounds=1 if how else 2)
    _, taken = plain_pipeline(folder, {**size, "num_inference_steps": 4, "guidance_scale": 5.0})
    say(case="wan plain pipeline", seconds=taken)


# --- sound ------------------------------------------------------------------------------------------------------------


def musicgen(models: Path, small: bool) -> None:
    """Five seconds of music."""
    import torch
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    folder, seconds = models / "musicgen", 0.5 if small else 5.0
    runtime = Runtime(Settings(models_dir=str(models)))
    made = measure(
        "musicgen-large", runtime, job("ttm", "musicgen", folder, MusicLoadOptions()),
        lambda model: model.compose(MusicRequest([PROMPT]), MusicOptions(duration=seconds, seed=1), Control()),
    )  # fmt: skip
    device, dtype = ("cuda", torch.float16) if GPU else ("cpu", torch.float32)
    plain = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
    inputs = AutoTokenizer.from_pretrained(folder)([PROMPT], padding=True, return_tensors="pt").to(device)
    taken = []
    for _ in range(2):
        torch.manual_seed(1)
        began = time.perf_counter()
        sound = plain.generate(**inputs, do_sample=True, guidance_scale=3.0, max_new_tokens=round(50 * seconds) + 3)
        sound = sound.float().cpu().numpy()[0]
        taken.append(round(time.perf_counter() - began, 3))
    length = min(sound.shape[1], made.audio.samples.shape[1])
    same = bool((sound[:, :length] == made.audio.samples[:, :length]).all())
    say(case="musicgen-large plain library", seconds=taken, audio_s=length / 32_000, same_samples=same)


def bark(models: Path, small: bool) -> None:
    """About five seconds of speech, with all parts on the card and with one at a time."""
    runtime = Runtime(Settings(models_dir=str(models)))
    options = SpeechOptions(voice="v2/en_speaker_6", seed=1)
    for offload in ("none", "parts"):
        work = job("tts", "bark", models / "bark", SpeechLoadOptions(offload=offload))
        made = measure(
            f"bark offload={offload}", runtime, work, lambda m: m.speak("A heron flies.", options, Control()), rounds=1
        )
        say(case=f"bark offload={offload}", audio_s=made.audio.duration_s)


# --- chat -------------------------------------------------------------------------------------------------------------


def llama(models: Path, small: bool) -> None:
    """Read a prompt, write 128 tokens: all layers on the card, and as many as a small budget holds."""
    path, tokens, words = models / "llama8b.gguf", 16 if small else 128, 40 if small else 400
    load = ChatLoadOptions(ctx_size=1024 if small else 8192)
    for budget in (0.0, 0.0, 3.0):
        settings = Settings(models_dir=str(models), vram_budget_gb=budget)
        work = job("llm", "llama_cpp", path, load)
        made = measure(f"llama-8b budget={budget:g}", Runtime(settings), work, chat(tokens, words))
        say(
            case=f"llama-8b budget={budget:g}", prompt_tokens=made.prompt_tokens, written=made.completion_tokens,
            prompt_per_s=made.prompt_tokens / made.prompt_s, tokens_per_s=made.completion_tokens / made.generate_s,
        )  # fmt: skip
    _plain_llama(path, load.ctx_size, tokens, words)


def _plain_llama(path: Path, n_ctx: int, tokens: int, words: int) -> None:
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=n_ctx, n_gpu_layers=-1, verbose=False)
    rates = []
    for _ in range(2):
        prompt = model.tokenize(("heron lake " * (words // 2)).encode(), add_bos=False)
        model.reset()
        model.eval(prompt)
        began = time.perf_counter()
        for _ in range(tokens):
            model.eval([model.sample(temp=0)])
        rates.append(round(tokens / (time.perf_counter() - began), 1))
    say(case="llama-8b plain library", prompt_tokens=len(prompt), tokens_per_s=rates)
    model.close()


BUILD: dict[str, Callable[..., Path]] = {
    "sdxl": full_size.sdxl, "wan": full_size.wan_1_3b, "bark": full_size.bark, "musicgen": full_size.musicgen_large,
    "llama": full_size.llama_8b,
}  # fmt: skip
RUN: dict[str, Callable[[Path, bool], None]] = {
    "sdxl": sdxl, "wan": wan, "bark": bark, "musicgen": musicgen, "llama": llama, "soak": soak,
    "park": park,
}  # fmt: skip


def run(case: str, models: Path, small: bool) -> None:
    """One case: build what is missing, in a process of its own, and measure."""
    target = models / ("llama8b.gguf" if case == "llama" else case)
    if case in BUILD and not target.exists():
        began = time.perf_counter()
        call = f"bench_gpu.BUILD[{case!r}](Path({str(target)!r}), small={small})"
        code = f"from pathlib import Path; from benchmarks import bench_gpu; {call}"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)
        say(case=f"{case} built", seconds=time.perf_counter() - began)
    RUN[case](models, small)


def main() -> int:
    """Read the arguments; each case in a process of its own unless it is the only one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=list(RUN))
    parser.add_argument("--models", type=Path, required=True, help="folder for the built models")
    parser.add_argument("--small", action="store_true", help="in miniature")
    given = parser.parse_args()
    given.models.mkdir(parents=True, exist_ok=True)
    if len(given.cases) == 1:
        run(given.cases[0], given.models, given.small)
        return 0
    command = [sys.executable, __file__, "--models", str(given.models), *(["--small"] if given.small else [])]
    return max(subprocess.run([*command, case], check=False).returncode for case in given.cases)


if __name__ == "__main__":
    raise SystemExit(main())
