"""Chat through the host beside plain llama-cpp-python, in one run.

    python benchmarks/bench_llm.py [--model FILE.gguf] [--threads N] [--rounds N]

Prints JSON: tokens per second of both and their ratio (medians of pairs), seconds to the first token over a chat that
grows and over two chats that take turns, how late a heartbeat in the same process is while the model writes, and how
long `cancel()` takes. On a busy machine only the ratios mean something.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lollms_local.client import connect
from lollms_local.devices import cpu_threads
from lollms_local.runtime import get_runtime

CTX, ANSWER, TURNS = 8192, 24, 10
WORDS = [
    "the",
    "old",
    "town",
    "lies",
    "between",
    "river",
    "and",
    "hill",
    "its",
    "market",
    "opens",
    "at",
    "seven",
    "in",
    "spring",
    "people",
    "walk",
    "there",
]
Messages = list[dict[str, str]]


@dataclass
class Written:
    """One answer: seconds to its first piece and to its end, its text, its number of pieces."""

    first_s: float
    whole_s: float
    text: str
    pieces: int

    @property
    def rate(self) -> float:
        """Pieces (tokens, but for those held back) per second after the first."""
        return (self.pieces - 1) / max(self.whole_s - self.first_s, 1e-9)


Writer = Callable[[Messages, int], Written]


def main() -> None:
    """Run everything and print it."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--threads", type=int, default=cpu_threads())
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    path = given.model or next((get_runtime().models_dir / "smollm2-135m-instruct").glob("*.gguf"))
    config = {"temperature": 0, "repeat_penalty": 1, "n_threads": given.threads, "ctx_size": CTX}
    client = connect(chat=str(path), llm_binding_config=config)
    ours = our_writer(client)
    show(model=path.name, threads=given.threads)
    show(heartbeat_late_ms=heartbeat(ours))
    show(cancel_ms=cancel(client))
    plain = plain_writer(path, given.threads)
    show(tokens_per_s=speed(ours, plain, given.rounds))
    for name, writer in (("ours", ours), ("plain", plain)):
        show(**{f"first_token_s_{name}": first_tokens(writer)})


def show(**found: Any) -> None:
    print(json.dumps(found), flush=True)


# --- the two ways to write --------------------------------------------------------------------------------------------


def our_writer(client: Any) -> Writer:
    """Through the client, as a discussion does it."""

    def write(messages: Messages, count: int) -> Written:
        started, times = time.perf_counter(), []
        text = client.generate_from_messages(
            messages=messages, n_predict=count, streaming_callback=lambda piece, kind: times.append(time.perf_counter())
        )
        return Written(times[0] - started, time.perf_counter() - started, text, len(times))

    return write


def plain_writer(path: Path, threads: int) -> Writer:
    """llama-cpp-python's own class, as its documentation has it."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=CTX, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
    )

    def write(messages: Messages, count: int) -> Written:
        started, times, text = time.perf_counter(), [], ""
        for row in model.create_chat_completion(messages, temperature=0.0, max_tokens=count, stream=True):
            piece = row["choices"][0]["delta"].get("content")
            if piece:
                times.append(time.perf_counter())
                text += piece
        return Written(times[0] - started, time.perf_counter() - started, text, len(times))

    return write


# --- what is measured -------------------------------------------------------------------------------------------------


def speed(ours: Writer, plain: Writer, rounds: int) -> dict[str, Any]:
    """Tokens per second, in turn; the first round warms both up."""
    pairs = []
    for turn in range(rounds + 1):
        messages = [
            {"role": "user", "content": f"Write a long story about a ship. It begins in the year {1700 + turn}."}
        ]
        order = (ours, plain) if turn % 2 else (plain, ours)
        rates = {id(writer): writer(messages, 160).rate for writer in order}
        pairs.append((rates[id(ours)], rates[id(plain)]))
    pairs = pairs[1:]
    return {
        "ours": round(statistics.median(o for o, _ in pairs), 1),
        "plain": round(statistics.median(p for _, p in pairs), 1),
        "ratio": round(statistics.median(o / p for o, p in pairs), 3),
        "ratios": sorted(round(o / p, 3) for o, p in pairs),
    }


def question(draw: random.Random) -> dict[str, str]:
    """About forty new tokens, the same number every time."""
    return {"role": "user", "content": " ".join(draw.choices(WORDS, k=40))}


def first_tokens(write: Writer) -> dict[str, Any]:
    """Seconds to the first token of each turn: of one chat alone, then of two that take turns."""
    draw = random.Random(1)
    alone: Messages = []
    times = [turn(write, alone, draw) for _ in range(TURNS)]
    talks: tuple[Messages, Messages] = ([], [])
    both = [statistics.fmean(turn(write, talk, draw) for talk in talks) for _ in range(TURNS)]
    late = slice(2, TURNS)
    return {
        "alone": [round(t, 3) for t in times],
        "turn_10_over_turn_2": round(statistics.median(times[7:]) / statistics.median(times[1:4]), 2),
        "two_in_turns": [round(t, 3) for t in both],
        "two_over_alone": round(statistics.median(both[late]) / statistics.median(times[late]), 2),
    }


def turn(write: Writer, talk: Messages, draw: random.Random) -> float:
    talk.append(question(draw))
    answer = write(talk, ANSWER)
    talk.append({"role": "assistant", "content": answer.text})
    return answer.first_s


def heartbeat(write: Writer) -> dict[str, float]:
    """How late a thread that wants to wake every 5 ms is, with nothing to do and while the model writes."""

    def late(work: Callable[[], Any]) -> dict[str, float]:
        found: list[float] = []
        done = threading.Event()

        def beat() -> None:
            while not done.is_set():
                before = time.perf_counter()
                time.sleep(0.005)
                found.append((time.perf_counter() - before - 0.005) * 1000)

        thread = threading.Thread(target=beat)
        thread.start()
        work()
        done.set()
        thread.join()
        found.sort()
        return {"p50": round(found[len(found) // 2], 2), "p99": round(found[int(len(found) * 0.99)], 2)}

    long = [{"role": "user", "content": " ".join(WORDS * 60)}]
    return {
        "idle": late(lambda: time.sleep(3)),
        "generating": late(lambda: write([{"role": "user", "content": "Write a long story."}], 300)),
        "reading": late(lambda: write(long, 2)),
    }


def cancel(client: Any, rounds: int = 5) -> dict[str, float]:
    """From `cancel()` to the return, while writing and while 4,000 tokens are read."""

    def once(prompt: str, after_s: float) -> float:
        asked: list[float] = []

        def stop() -> None:
            time.sleep(after_s)
            asked.append(time.perf_counter())
            client.cancel()

        thread = threading.Thread(target=stop)
        thread.start()
        client.generate_text(prompt, n_predict=2000)
        ended = time.perf_counter()
        thread.join()
        return (ended - asked[0]) * 1000

    writing = [once("Write a very long story about a ship.", 1.0) for _ in range(rounds)]
    reading = [once(f"{n} " + " ".join(WORDS * 210), 0.7) for n in range(rounds)]
    return {"writing_worst": round(max(writing), 1), "reading_4000_worst": round(max(reading), 1)}


if __name__ == "__main__":
    main()
