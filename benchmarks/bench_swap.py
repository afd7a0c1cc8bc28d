"""A soak of the manager: random requests over six modalities, several threads, a budget below the models' sum.

    python benchmarks/bench_swap.py --requests 1000 --threads 4 --budget-gb 1.2
    python benchmarks/bench_swap.py --cycles 200    resident memory over cycles of load, work, unload; engines in turn

Real starter models for chat, speech out and speech in; tiny ones with random weights for pictures, films, music. Prints
failures, samples over budget (20 a second: what the manager has granted, and what the process has gained in resident
memory), models that were in memory twice, loads, and the time. Exits with 1 if anything of that is wrong.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import over_cycles

GIB = 1 << 30


def tiny_models(folder: Path) -> dict[str, str]:
    """Paths of the tiny pipelines, by modality."""
    from tests.tiny import diffusion, video
    from tests.tiny.musicgen import build_musicgen

    return {
        "tti": str(diffusion.save(diffusion.stable_diffusion(), folder / "sd")),
        "ttv": str(diffusion.save(video.wan(), folder / "wan")),
        "ttm": str(build_musicgen(folder / "musicgen")),
    }


def jobs(client: Any, sound: bytes) -> dict[str, Callable[[], Any]]:
    """One small request per modality; each checks its own result."""

    def nonempty(result: Any) -> None:
        if not result:
            raise AssertionError("an empty result")

    def heard() -> None:
        if "fox" not in client.stt.transcribe_audio(sound).lower():
            raise AssertionError("wrong words")

    return {
        "llm": lambda: nonempty(client.generate_text("Say hello.", n_predict=4, temperature=0)),
        "tts": lambda: nonempty(client.tts.generate_audio("Good morning.")),
        "stt": heard,
        "tti": lambda: nonempty(client.tti.generate_image("a heron", width=64, height=64, steps=1)),
        "ttv": lambda: nonempty(client.ttv.generate_video("a heron", width=32, height=32, num_frames=5, steps=1)),
        "ttm": lambda: nonempty(client.ttm.generate_music("a waltz", duration=0.2)),
    }


class Watch(threading.Thread):
    """Looks at the ledger and the process twenty times a second."""

    def __init__(self, manager: Any, budget: int) -> None:
        super().__init__(daemon=True)
        import psutil

        self._manager, self._budget, self._process = manager, budget, psutil.Process()
        self._base = self._process.memory_info().rss
        self.samples = self.over = self.doubles = self.worst_rss = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            rows = self._manager.snapshot()
            self.samples += 1
            self.over += sum(row.charged.get("ram", 0) for row in rows) > self._budget
            self.doubles += len({row.key for row in rows}) != len(rows)
            self.worst_rss = max(self.worst_rss, self._process.memory_info().rss - self._base)


@contextmanager
def six_modalities(budget_gb: float) -> Iterator[tuple[Any, dict[str, Callable[[], Any]]]]:
    """The manager, and one small request per modality, each made once already."""
    from lollms_local.client import connect
    from lollms_local.runtime import Runtime, Settings, set_runtime

    runtime = Runtime(Settings(ram_budget_gb=budget_gb, wait_s=600))
    set_runtime(runtime)
    with tempfile.TemporaryDirectory() as folder:
        tiny = tiny_models(Path(folder))
        client = connect(
            chat=True, speech=True, transcription=True, images=tiny["tti"], video=tiny["ttv"], music=tiny["ttm"],
            llm_binding_config={"ctx_size": 1024},
        )  # fmt: skip
        sound = client.tts.generate_audio("The quick brown fox jumps over the lazy dog.")
        work = jobs(client, sound)
        for job in work.values():
            job()  # imports, so that what follows measures models and not libraries
        runtime.manager.unload_idle()
        yield runtime, work
        runtime.manager.close()


def cycles(count: int) -> int:
    """Load, work, unload; one engine after the other."""
    with six_modalities(0.0) as (runtime, work):
        turns = itertools.cycle(work.values())

        def cycle() -> None:
            next(turns)()
            runtime.manager.unload_idle()

        found = over_cycles(cycle, count)
    print(json.dumps(found))
    return 0


def soak(requests: int, threads: int, budget_gb: float, seed: int) -> int:
    """Run it; returns the exit code."""
    with six_modalities(budget_gb) as (runtime, work):
        watch = Watch(runtime.manager, int(budget_gb * GIB))
        watch.start()
        began = time.monotonic()
        failures = _hammer(work, requests, threads, seed)
        took = time.monotonic() - began
        watch.done.set()
        watch.join()
        evictions = len(runtime.manager.explain())
    print(f"{requests} requests from {threads} threads in {took:.0f} s; budget {budget_gb} GiB")
    print(f"failures {sum(failures.values())} {dict(failures)}")
    print(f"samples {watch.samples}, over budget {watch.over}, with a model twice {watch.doubles}")
    print(f"most resident memory gained {watch.worst_rss / 1e6:.0f} MB; decisions kept {evictions}")
    return int(bool(sum(failures.values()) or watch.over or watch.doubles))


def _hammer(work: dict[str, Callable[[], Any]], requests: int, threads: int, seed: int) -> collections.Counter[str]:
    failures: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def worker(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        for _ in range(requests // threads):
            name = chance.choice(list(work))
            try:
                work[name]()
            except Exception as exc:  # a soak counts whatever goes wrong
                with lock:
                    failures[f"{name}: {type(exc).__name__}: {str(exc)[:80]}"] += 1
                    if sum(failures.values()) == 1:
                        traceback.print_exc()

    workers = [threading.Thread(target=worker, args=(n,)) for n in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    return failures


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--budget-gb", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=0)
    given = parser.parse_args()
    if given.cycles:
        return cycles(given.cycles)
    return soak(given.requests, given.threads, given.budget_gb, given.seed)


if __name__ == "__main__":
    raise SystemExit(main())
