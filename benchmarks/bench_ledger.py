"""What the manager predicts for a model in RAM beside what the kernel saw, each engine in a process of its own.

    python benchmarks/bench_ledger.py [CASE ...]

Prints JSON: predicted and measured MB, of the weights after a load and of the whole at the peak of a job that uses what
was planned for (a full context, a long recording), both less what the libraries take by themselves; what the manager
learned from one such job before; and the errors.
Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lollms_local.manager import ModelManager
from lollms_local.memory import give_back
from lollms_local.modalities.base import Control
from lollms_local.runtime import Job, Runtime

#: a job and what to do with its model
Case = tuple[Job, Callable[[Any], Any]]


def _job(runtime: Runtime, name: str, modality: Any, options: Any) -> Job:
    return Job(runtime.resolve(name, modality), options, runtime.models_dir)


def llama(runtime: Runtime, folder: Path) -> Case:
    """SmolLM2-135M with a full context of 8192 tokens."""
    from lollms_local.modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest

    options = ChatLoadOptions(ctx_size=8192, prompt_cache_mb=0)
    request = ChatRequest(prompt="heron lake " * 2500)
    return _job(runtime, "smollm2-135m-instruct", "llm", options), lambda model: model.generate(
        request, ChatOptions(n_predict=64, temperature=0), Control(), lambda piece: True
    )


def whisper(runtime: Runtime, folder: Path) -> Case:
    """Whisper tiny.en and eleven minutes of sound: more than one piece."""
    import numpy as np

    from lollms_local.media import Audio
    from lollms_local.modalities.transcription import TranscriptionLoadOptions, TranscriptionOptions
    from tests.spoken import spoken

    sound = spoken(runtime.models_dir)
    file = folder / "long.wav"
    file.write_bytes(_wav(Audio(np.tile(sound.samples, (1, int(660 / sound.duration_s))), sound.sample_rate)))
    return _job(runtime, "whisper-tiny.en", "stt", TranscriptionLoadOptions()), lambda model: model.transcribe(
        file, TranscriptionOptions(temperature=0), Control()
    )


def _wav(audio: Any) -> bytes:
    from lollms_local.media import encode_audio

    return encode_audio(audio, "wav")


def piper(runtime: Runtime, folder: Path) -> Case:
    """The starter voice, and the longest piece that it speaks in one go."""
    return _speech(runtime, "piper-en-us-joe-medium")


def vits(runtime: Runtime, folder: Path) -> Case:
    """VITS of the published size, at a rate that makes the longest piece last as long as is planned for, about 30 s."""
    built = _built(folder / "vits", "benchmarks.bench_tts", "full_vits")
    return _speech(runtime, str(_said(built, speaking_rate=0.7)))


def vits_narrow(runtime: Runtime, folder: Path) -> Case:
    """A VITS of half the width."""
    narrow = {"hidden_size": 96, "flow_size": 96, "ffn_dim": 384, "upsample_initial_channel": 256}
    built = _built(folder / "vits", "benchmarks.bench_tts", "full_vits", **narrow)
    return _speech(runtime, str(_said(built, speaking_rate=0.7)))


def _built(folder: Path, module: str, builder: str, **sizes: Any) -> Path:
    """The folder that `builder(folder, **sizes)` makes in a process of its own: what building leaves in this one's heap
    would be filled by the job, and be counted as the model's."""
    code = f"import {module} as made; from pathlib import Path; made.{builder}(Path({str(folder)!r}), **{sizes!r})"
    root = str(Path(__file__).resolve().parents[1])
    subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root}, check=True)
    return folder


def _said(folder: Path, **changes: Any) -> Path:
    """The folder, with changes to its config."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def bark(runtime: Runtime, folder: Path) -> Case:
    """A Bark of 60 million parameters, and the longest piece that the library allows: 768 tokens, 15 s."""
    built = _built(folder / "bark", "benchmarks.bench_tts", "middle_bark", tokens=768)
    return _speech(runtime, str(built), chars=200)


def bark_small(runtime: Runtime, folder: Path) -> Case:
    """A Bark of the size of suno/bark-small with the published codec; the longest piece."""
    sizes = {"tokens": 768, "layers": 12, "hidden": 768, "heads": 12, "filters": 32}
    built = _built(folder / "bark", "benchmarks.bench_tts", "middle_bark", **sizes)
    return _speech(runtime, str(built), chars=200)


def _speech(runtime: Runtime, name: str, chars: int = 399) -> Case:
    from benchmarks.bench_tts import LINE
    from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions

    longest = LINE[:-1].ljust(398, ",").replace(",,", ", and so it went on,")[: chars - 1] + "."
    return _job(runtime, name, "tts", SpeechLoadOptions()), lambda model: model.speak(
        longest, SpeechOptions(), Control()
    )


def musicgen(runtime: Runtime, folder: Path) -> Case:
    """A MusicGen with a decoder of 40 million parameters, and its whole window of thirty seconds."""
    return _music(runtime, _built(folder / "musicgen", "benchmarks.bench_ttm", "middle_musicgen"))


def musicgen_wide(runtime: Runtime, folder: Path) -> Case:
    """The same with a codec of the published width."""
    built = _built(folder / "musicgen", "benchmarks.bench_ttm", "middle_musicgen", filters=64, shortcut=False)
    return _music(runtime, built)


def _music(runtime: Runtime, folder: Path) -> Case:
    from lollms_local.modalities.music import MusicLoadOptions, MusicOptions, MusicRequest

    job = _job(runtime, str(folder), "ttm", MusicLoadOptions())
    return job, lambda model: model.compose(MusicRequest(("a waltz",)), MusicOptions(duration=30), Control())


def image(runtime: Runtime, folder: Path) -> Case:
    """An SD-shaped pipeline of 80 million parameters, 512x512."""
    from benchmarks.bench_tti import middle_pipeline
    from lollms_local.modalities.image import ImageLoadOptions, ImageOptions

    middle_pipeline().save_pretrained(folder / "image")
    job = _job(runtime, str(folder / "image"), "tti", ImageLoadOptions())
    options = ImageOptions(width=512, height=512, steps=2)
    return job, lambda model: model.generate("a heron", options, Control())


def video(runtime: Runtime, folder: Path) -> Case:
    """Wan's own VAE in a small pipeline, and a film of the usual size: the VAE is what needs most."""
    from diffusers import AutoencoderKLWan

    from benchmarks.bench_ttv import middle_wan
    from lollms_local.modalities.video import VideoLoadOptions, VideoOptions

    AutoencoderKLWan().save_pretrained(middle_wan(folder / "video") / "vae")
    job = _job(runtime, str(folder / "video"), "ttv", VideoLoadOptions())
    options = VideoOptions(steps=2)
    return job, lambda model: model.generate("a heron", options, Control())


_MADE = (llama, whisper, piper, vits, vits_narrow, bark, bark_small, musicgen, musicgen_wide, image, video)
CASES: dict[str, Callable[[Runtime, Path], Case]] = {made.__name__: made for made in _MADE}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(name: str) -> dict[str, Any]:
    """The third load and job in a process: in the first the libraries take what they keep for good, in the second the
    manager learns."""
    from benchmarks.bench_ttv import _status

    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(manager=ModelManager())  # one that has learned nothing before
        job, use = CASES[name](runtime, Path(folder))
        runtime.call(job, use, "case")
        runtime.unload(job)
        runtime.call(job, use, "case")
        learned = runtime.manager.snapshot()[0].peak["ram"]
        runtime.unload(job)
        gc.collect()
        give_back()
        before = _status("VmRSS")
        _, plan = runtime.footprint(job)
        with runtime.lease(job) as model:
            held = _status("VmRSS") - before
            Path("/proc/self/clear_refs").write_text("5")
            use(model)
            peak = _status("VmHWM") - before
        runtime.unload(job)
        return {
            "case": name,
            "planned_weights_mb": round(plan.weights_bytes / 1e6, 1),
            "held_mb": round(held / 1e6, 1),
            "planned_mb": round(plan.total_bytes / 1e6, 1),
            "peak_mb": round(peak / 1e6, 1),
            "planned_over_peak": round(plan.total_bytes / max(1, peak), 3),
            "learned_mb": round(learned / 1e6, 1),
            "learned_over_peak": round(learned / max(1, peak), 3),
        }


def main() -> int:
    """Every case in a child; with `--here`, one in this process."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    arguments.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.here:
        print(json.dumps(measure(given.cases[0])))
        return 0
    codes = [subprocess.call([sys.executable, __file__, "--here", name]) for name in given.cases or CASES]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
