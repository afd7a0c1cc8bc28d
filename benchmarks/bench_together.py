"""A chat and a long transcription at once on a CPU, beside the same with the plain libraries in two threads.

    python benchmarks/bench_together.py [--rounds N] [--tokens N] [--sentences N]

Prints JSON: tokens per second of the chat alone and beside the transcription, and the time until both are done over the
sum of their times alone. Ours shares the cores and lets the chat go first; the plain libraries use all cores each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_llm import Writer, our_writer, plain_writer

from lollms_local.client import connect
from lollms_local.devices import cpu_threads
from lollms_local.media import Audio, decode_audio, encode_audio, resample
from lollms_local.runtime import get_runtime

CTX = 4096
SENTENCE = "The museum opens at ten in the morning, and the old harbour lies behind the station."


def main() -> None:
    """Measure both pairs in turn and print the medians."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=600)
    arguments.add_argument("--sentences", type=int, default=50)
    given = arguments.parse_args()
    client = connect(
        chat="smollm2-135m-instruct", transcription="whisper-tiny.en", speech=True,
        llm_binding_config={"temperature": 0, "ctx_size": CTX},
    )  # fmt: skip
    spoken = resample(decode_audio(client.tts.generate_audio(SENTENCE)), 16_000)
    sound = Audio(np.tile(spoken.samples, (1, given.sentences)), 16_000)
    pairs = {"ours": ours(client, sound, given.tokens), "plain": plain(sound, given.tokens)}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in pairs}
    for turn in range(given.rounds + 1):
        for name, (chat, transcribe) in pairs.items():
            found = measured(chat, transcribe)
            if turn:  # the first round warms everything up
                figures[name].append(found)
    print(json.dumps({"threads": cpu_threads(), "recording_s": round(sound.duration_s), "tokens": given.tokens}))
    for name, rows in figures.items():
        print(json.dumps({name: {key: round(statistics.median(r[key] for r in rows), 3) for key in rows[0]}}))


def measured(chat: Callable[[], int], transcribe: Callable[[], Any]) -> dict[str, float]:
    """Each alone, then both at once."""
    chat_s, tokens = timed(chat)
    listen_s, _ = timed(transcribe)
    ended: dict[str, float] = {}
    started = time.perf_counter()

    def listen() -> None:
        transcribe()
        ended["listen"] = time.perf_counter() - started

    thread = threading.Thread(target=listen)
    thread.start()
    both_chat_s, both_tokens = timed(chat)
    thread.join()
    rate, both_rate = tokens / chat_s, both_tokens / both_chat_s
    return {
        "chat_alone_tokens_per_s": rate,
        "chat_beside_tokens_per_s": both_rate,
        "chat_keeps": both_rate / rate,
        "transcription_alone_s": listen_s,
        "transcription_beside_s": ended["listen"],
        "both_over_sum": max(both_chat_s, ended["listen"]) / (chat_s + listen_s),
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def chat(write: Writer, tokens: int) -> Callable[[], int]:
    """Answers one after the other, until there are so many tokens."""

    def run() -> int:
        written = 0
        while written < tokens:
            question = f"Write a long story about a ship. It begins in the year {1700 + written}."
            written += write([{"role": "user", "content": question}], 160).pieces
        return written

    return run


def ours(client: Any, sound: Audio, tokens: int) -> tuple[Callable[[], int], Callable[[], Any]]:
    """Through the host."""
    recording = encode_audio(sound, "wav")

    return chat(our_writer(client), tokens), lambda: client.stt.transcribe(recording, temperature=0.0)


def plain(sound: Audio, tokens: int) -> tuple[Callable[[], int], Callable[[], Any]]:
    """The libraries by themselves, with as many threads each as there are cores."""
    from faster_whisper import WhisperModel

    folder = get_runtime().models_dir
    file = next((folder / "smollm2-135m-instruct").glob("*.gguf"))
    whisper = WhisperModel(
        str(folder / "whisper-tiny.en"), device="cpu", compute_type="int8", cpu_threads=cpu_threads(),
        local_files_only=True,
    )  # fmt: skip

    def transcribe() -> int:
        found, _ = whisper.transcribe(sound.samples[0], vad_filter=True, temperature=0.0)
        return sum(1 for _ in found)

    return chat(plain_writer(file, cpu_threads()), tokens), transcribe


if __name__ == "__main__":
    main()
