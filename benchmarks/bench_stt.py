"""Speech to text: what the binding costs over plain faster-whisper, what batches bring, memory at work and over cycles.

    python benchmarks/bench_stt.py                  ratio of time, binding / plain library (goal: at most 1.02)
    python benchmarks/bench_stt.py --batched        ten minutes of speech: one stretch after the other, in batches
    python benchmarks/bench_stt.py --memory         peak of a load and of ten minutes against what was predicted
    python benchmarks/bench_stt.py --soak 100       resident memory after each of 100 load, transcribe, unload cycles

Model and voice are the real starter ones (LOLLMS_LOCAL_MODELS_DIR). Run it on a calm machine.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import in_turn, over_cycles

MODEL = "whisper-tiny.en"
MIB = 1 << 20
#: parts of sentences; no two of those made of them are alike, because repetition makes Whisper try again
WHO = (
    "the doctor", "my older sister", "a tall soldier", "our new teacher", "the captain", "a young farmer", "the mayor",
    "her grandfather", "the baker", "a famous singer", "the night nurse", "his lawyer", "the painter", "a lost tourist",
)  # fmt: skip
DID = (
    "bought", "sold", "painted", "repaired", "forgot", "found", "carried", "described", "borrowed", "cleaned", "hid",
    "returned", "measured", "photographed",
)  # fmt: skip
WHAT = (
    "a wooden boat", "three silver coins", "the green bicycle", "an old piano", "the broken window", "a heavy suitcase",
    "the kitchen table", "two white horses", "a letter from Canada", "the golden watch", "a basket of apples",
    "the last train ticket", "a map of the island", "the blue curtains",
)  # fmt: skip
WHERE = (
    "near the station", "behind the church", "in the garden", "at the market", "on the bridge", "by the river",
    "outside the museum", "in the library", "under the stairs", "at the harbor",
)  # fmt: skip
WHEN = (
    "on Monday morning", "last summer", "before the storm", "after dinner", "in the middle of the night",
    "three days ago", "at the end of winter", "during the holidays", "around noon", "when the bell rang",
)  # fmt: skip


def text(sentences: int) -> str:
    """The same sentences every time, 13 words or so each."""
    draw = random.Random(7)
    made: list[str] = []
    while len(made) < sentences:
        first, *rest = (draw.choice(part) for part in (WHEN, WHO, DID, WHAT, WHERE))
        made.append(f"{first.capitalize()}, {' '.join(rest)}.")
    return " ".join(made)


def recording(sentences: int) -> tuple[bytes, str, float]:
    """A WAV file of the starter voice, what it says, and its seconds."""
    from lollms_local.media import encode_audio
    from lollms_local.weights import models_dir
    from tests.spoken import spoken

    said = text(sentences)
    sound = spoken(models_dir(), said)
    return encode_audio(sound), said, sound.duration_s


def binding(**config: Any) -> Any:
    """local_stt in the real client."""
    from lollms_local.client import connect

    return connect(transcription=MODEL, llm_binding_name="", stt_binding_config=config).stt


def plain_model() -> Any:
    from faster_whisper import WhisperModel

    from lollms_local.devices import cpu_threads
    from lollms_local.weights import models_dir

    folder = models_dir() / MODEL
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=cpu_threads())


def overhead(rounds: int) -> dict[str, Any]:
    """Seconds of both for the same file and options, both from the file's bytes."""
    wav, _, seconds = recording(10)
    plain, ours = plain_model(), binding()
    texts: dict[str, str] = {}

    def by_plain() -> None:
        found, _ = plain.transcribe(io.BytesIO(wav), vad_filter=True)
        texts["plain"] = "".join(segment.text for segment in found).strip()

    def by_binding() -> None:
        texts["ours"] = ours.transcribe_audio(wav)

    result = in_turn(by_plain, by_binding, rounds)
    return {"audio_s": round(seconds, 1), "same_text": texts["plain"] == texts["ours"], **result}


def batched(sentences: int, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> dict[str, Any]:
    """Ten minutes: plain faster-whisper as it comes, then ours in batches of each size."""
    wav, said, seconds = recording(sentences)
    rows: dict[str, Any] = {"audio_s": round(seconds, 1)}
    plain = plain_model()
    rows["plain, default"] = _timed(lambda: _plain_text(plain, wav), said, seconds)
    plain.model.unload_model()
    for size in sizes:
        ours = binding(batch_size=size)

        def work(ours: Any = ours) -> str:
            return str(ours.transcribe_audio(wav))

        rows[f"ours, batch {size}"] = _timed(work, said, seconds)
        ours.unload_model()
    first = rows["plain, default"]
    for name, row in rows.items():
        if name.startswith("ours"):
            row["speed_up_cpu"] = round(first["cpu_s"] / row["cpu_s"], 2)
            row["speed_up_clock"] = round(first["clock_s"] / row["clock_s"], 2)
    return rows


def _plain_text(plain: Any, wav: bytes) -> str:
    return "".join(segment.text for segment in plain.transcribe(io.BytesIO(wav))[0])


def _timed(work: Callable[[], str], said: str, seconds: float) -> dict[str, Any]:
    clock, cpu = time.perf_counter(), time.process_time()
    heard = work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {
        "clock_s": round(clock, 1), "cpu_s": round(cpu, 1), "times_real_time": round(seconds / clock, 1),
        "words_right": round(_agreement(said, heard), 4),
    }  # fmt: skip


def _agreement(said: str, heard: str) -> float:
    """Share of the words said that were heard in their order."""
    from tests.spoken import words

    given, found = words(said), words(heard)
    blocks = difflib.SequenceMatcher(None, given, found, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(given)


def memory(sentences: int) -> dict[str, Any]:
    """Own memory at the worst moment of a load and of a long recording, over what was there before, and the claim."""
    import av
    import faster_whisper
    import onnxruntime

    from lollms_local.memory import give_back, own_bytes
    from lollms_local.runtime import get_runtime

    assert av and faster_whisper and onnxruntime, "libraries are no part of a model's memory"
    wav, _, seconds = recording(sentences)
    rows: dict[str, Any] = {"audio_s": round(seconds, 1)}
    for size in (1, 2, 4, 8):
        ours = binding(batch_size=size, beam_size=5)
        ours.unload_model()
        give_back()
        before = own_bytes("ram")
        _, claim = get_runtime().footprint(ours.job())
        with _peak() as peak:
            assert ours.load_model()
            loading = peak[0]
            ours.transcribe_audio(wav)
        rows[f"batch {size}"] = {
            "predicted_mib": round(claim.total_bytes / MIB),
            "peak_mib": round((peak[0] - before) / MIB),
            "peak_of_the_load_mib": round((loading - before) / MIB),
            "predicted_over_peak": round(claim.total_bytes / (peak[0] - before), 3),
        }
        ours.unload_model()
    return rows


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most own memory seen while it lasts, looked at 500 times a second."""
    from lollms_local.memory import own_bytes

    most, done = [own_bytes("ram")], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], own_bytes("ram"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def soak(cycles: int) -> dict[str, Any]:
    """Load, transcribe, unload, as a host would do it."""
    wav, _, _ = recording(1)
    ours = binding(beam_size=1)

    def cycle() -> None:
        assert ours.transcribe_audio(wav)
        assert ours.unload_model()

    return over_cycles(cycle, cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sentences", type=int, default=160, help="160 are a good ten minutes")
    parser.add_argument("--batched", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--soak", type=int, default=0, metavar="CYCLES")
    given = parser.parse_args()
    if given.soak:
        result = soak(given.soak)
    elif given.batched:
        result = batched(given.sentences)
    elif given.memory:
        result = memory(given.sentences)
    else:
        result = overhead(given.rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
