"""What the manager costs: a warm lease, a request that must evict, and the wait for memory after an eviction.

    python benchmarks/bench_lease.py

Uses models without content, so that the manager is all there is to measure. Prints one JSON line per figure.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lollms_local.devices import Memory
from lollms_local.manager import ModelManager, Terms
from lollms_local.memory import own_bytes

SIZE = 1 << 30
ONE = Terms()


class Empty:
    def close(self) -> None:
        pass


class Block:
    """256 MiB that are really there."""

    def __init__(self) -> None:
        self.bytes: bytearray | None = bytearray(256 << 20)
        self.bytes[::4096] = b"1" * (len(self.bytes) // 4096)

    def close(self) -> None:
        self.bytes = None


def lease(manager: ModelManager, key: str, load: Callable[[], Any] = Empty, terms: Terms = ONE) -> Any:
    claims: Callable[[], Mapping[str, int]] = lambda: {"ram": SIZE}  # noqa: E731
    return manager.lease(key, label=key, claims=claims, load=load, terms=terms)


def microseconds(work: Callable[[], None], count: int) -> dict[str, float]:
    taken = []
    for _ in range(count):
        started = time.perf_counter_ns()
        work()
        taken.append((time.perf_counter_ns() - started) / 1000)
    taken.sort()
    return {"p50_us": round(taken[count // 2], 1), "p99_us": round(taken[count * 99 // 100], 1), "count": count}


def warm(manager: ModelManager, terms: Terms) -> Callable[[], None]:
    def work() -> None:
        with lease(manager, "warm", terms=terms):
            pass

    return work


def main() -> None:
    manager = ModelManager(lambda pool: Memory(4 * SIZE, 4 * SIZE), give_back=lambda: None)
    warm(manager, Terms())()
    print(json.dumps({"warm lease and release": microseconds(warm(manager, Terms()), 50_000)}))

    stop = threading.Event()
    shared = Terms(concurrency=0)

    def others() -> None:
        while not stop.is_set():
            with lease(manager, "other", terms=shared):
                pass

    threads = [threading.Thread(target=others) for _ in range(3)]
    for thread in threads:
        thread.start()
    print(json.dumps({"the same beside three busy threads": microseconds(warm(manager, Terms()), 2_000)}))
    stop.set()
    for thread in threads:
        thread.join()

    turn = iter(range(10**9))

    def evict() -> None:
        with lease(manager, f"model {next(turn) % 8}"):
            pass

    print(json.dumps({"a load with an eviction, empty models": microseconds(evict, 2_000)}))
    print(json.dumps({"memory free after an unload": after_unload()}))
    print(json.dumps({"warm lease through the runtime, the starter chat model, a job made anew": through_runtime()}))


def through_runtime() -> dict[str, float]:
    """What a binding pays per call: options with dozens of fields are part of the key."""
    from lollms_local.modalities.chat import ChatLoadOptions
    from lollms_local.runtime import Job, Runtime

    runtime, options = Runtime(), ChatLoadOptions()
    spec = runtime.resolve("smollm2-135m-instruct", "llm")

    def work() -> None:
        with runtime.lease(Job(spec, options.model_copy(), runtime.models_dir), "any"):
            pass

    for _ in range(5):  # the load, and the jobs that are watched
        work()
    return microseconds(work, 20_000)


def after_unload() -> dict[str, float]:
    """Milliseconds until the process has given up 90 % of a 256 MiB model again; the unload itself included."""
    manager, slowest = ModelManager(), 0.0
    for _ in range(10):
        before = own_bytes("ram")
        with lease(manager, "block", Block):
            pass
        held = own_bytes("ram") - before
        started = time.perf_counter()
        manager.unload("block")
        while own_bytes("ram") - before > held // 10 and time.perf_counter() - started < 5:
            time.sleep(0.001)
        slowest = max(slowest, time.perf_counter() - started)
    return {"slowest_ms": round(slowest * 1000, 1), "held_mib": held >> 20, "count": 10}


if __name__ == "__main__":
    main()
