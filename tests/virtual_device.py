"""A device that does not exist: memory counted to the byte, a clock that is moved by hand, and models with faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

from lollms_local.devices import Memory
from lollms_local.manager import ModelManager, Terms
from lollms_local.turns import Turns


class VirtualDevice:
    """Pools of `total` bytes, and the models on them. Safe to use from several threads."""

    def __init__(self, **total: int) -> None:
        self.total = total or {"gpu": 100}
        self.used = dict.fromkeys(self.total, 0)
        self.by_others = dict.fromkeys(self.total, 0)
        self.peak = dict.fromkeys(self.total, 0)
        self.now = 0.0
        self.log: list[str] = []
        self.live: dict[Hashable, int] = {}
        self.loading = 0
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def memory(self, pool: str) -> Memory:
        return Memory(self.total[pool], self.total[pool] - self.used[pool] - self.by_others[pool])

    def clock(self) -> float:
        return self.now

    def take(self, pool: str, count: int) -> None:
        with self._lock:
            if self.used[pool] + self.by_others[pool] + count > self.total[pool]:
                raise RuntimeError("CUDA out of memory. Tried to allocate too much.")
            self.used[pool] += count
            self.peak[pool] = max(self.peak[pool], self.used[pool])

    def give(self, pool: str, count: int) -> None:
        with self._lock:
            self.used[pool] -= count

    def manager(self, **options: Any) -> ModelManager:
        """A manager of this device that keeps no headroom and has a queue of its own."""
        settings = {
            "headroom_bytes": lambda pool, total: 0,
            "clock": self.clock,
            "give_back": lambda: None,
            "turns": Turns(),
            "timer": False,
            "wait_s": 600.0,  # longer than `Actor.join`: a wake-up that never comes is a failure
            **options,
        }
        return ModelManager(self.memory, **settings)


class VirtualModel:
    """A model that has bytes of the device until it is closed; if it `parks`, those of the card can wait in RAM."""

    def __init__(
        self,
        device: VirtualDevice,
        name: Hashable,
        sizes: dict[str, int],
        leak: float = 0.0,
        parks: bool = False,
        return_s: float = 0.0,
    ) -> None:
        self.device, self.name, self.sizes, self.leak = device, name, dict(sizes), leak
        self.return_s = return_s
        self.parked_bytes = sizes.get("gpu", 0) if parks else 0
        self.where = "card"
        self.closed = 0
        self.on_close: Callable[[], None] = lambda: None
        self.on_park: Callable[[], object] = lambda: None
        self.on_unpark: Callable[[], object] = lambda: None
        self.users = 0
        self.most_users = 0

    def close(self) -> None:
        self.closed += 1
        if self.users:
            self.device.faults.append(f"{self.name} closed while in use")
        if self.closed > 1:
            self.device.faults.append(f"{self.name} closed twice")
        with self.device._lock:
            self.device.live[self.name] -= 1
        self.device.log.append(f"close {self.name}")
        self.on_close()
        for pool, size in self.sizes.items():
            self.device.give(pool, round(size * (1 - self.leak)))

    def park(self) -> None:
        self._move("park", self.on_park)
        self.device.take("ram", self.parked_bytes)
        self.device.give("gpu", round(self.parked_bytes * (1 - self.leak)))
        if "ram" in self.sizes:  # what it works in
            self.device.give("ram", self.sizes["ram"])
        self.where, self.home, self.sizes = "ram", self.sizes, {"ram": self.parked_bytes}

    def unpark(self) -> None:
        if self.where != "ram":
            self.device.faults.append(f"{self.name} returned, and was not away")
        self.device.now += self.return_s
        self._move("unpark", self.on_unpark)
        self.device.take("gpu", self.parked_bytes)
        self.device.give("ram", self.parked_bytes)
        self.device.take("ram", self.home.get("ram", 0))
        self.where, self.sizes = "card", self.home

    def _move(self, deed: str, then: Callable[[], object]) -> None:
        if self.users or self.closed:
            self.device.faults.append(f"{deed} of {self.name} while in use or closed")
        then()
        self.device.log.append(f"{deed} {self.name}")

    def __enter__(self) -> VirtualModel:
        if self.closed or self.where != "card":
            self.device.faults.append(f"{self.name} used after it was closed, or away from the card")
        with self.device._lock:
            self.users += 1
            self.most_users = max(self.most_users, self.users)
        return self

    def __exit__(self, *_: object) -> None:
        with self.device._lock:
            self.users -= 1


class Kind:
    """How one model behaves: its size, its terms, and what goes wrong with it."""

    def __init__(
        self,
        device: VirtualDevice,
        name: str,
        size: int = 0,
        *,
        terms: Terms | None = None,
        load_s: float = 1.0,
        leak: float = 0.0,
        real: int | None = None,
        on_load: Callable[[], object] | None = None,
        parks: bool = False,
        return_s: float = 0.25,
        **sizes: int,
    ) -> None:
        self.device, self.name, self.load_s, self.leak, self.on_load = device, name, load_s, leak, on_load
        self.parks, self.return_s = parks, return_s
        self.terms = terms or Terms()
        self.claims = {"gpu": size} if size else dict(sizes)
        self.real = self.claims if real is None else {"gpu": real}
        self.loads = 0
        self.models: list[VirtualModel] = []

    def load(self) -> VirtualModel:
        device = self.device
        with device._lock:
            device.loading += 1
            if device.loading > 1:
                device.faults.append("two loads at once")
        try:
            self.loads += 1
            if self.on_load is not None:
                self.on_load()
            taken = []
            try:
                for pool, count in self.real.items():
                    device.take(pool, count)
                    taken.append((pool, count))
            except RuntimeError:
                for pool, count in taken:
                    device.give(pool, count)
                raise
            with device._lock:
                device.live[self.name] = device.live.get(self.name, 0) + 1
                if device.live[self.name] > 1:
                    device.faults.append(f"{self.name} loaded twice")
            device.now += self.load_s
            device.log.append(f"load {self.name}")
            model = VirtualModel(device, self.name, self.real, self.leak, self.parks, self.return_s)
            self.models.append(model)
            return model
        finally:
            with device._lock:
                device.loading -= 1

    def plan(self, **more: Any) -> dict[str, Any]:
        """The arguments of `lease` and `call`."""
        return {"label": self.name, "claims": lambda: self.claims, "load": self.load, "terms": self.terms, **more}

    def lease(self, manager: ModelManager, **more: Any) -> AbstractContextManager[VirtualModel]:
        return manager.lease(self.name, **self.plan(**more))

    def touch(self, manager: ModelManager, **more: Any) -> None:
        """Load it and let go."""
        with self.lease(manager, **more):
            pass


class Cleaning:
    """A `give_back` that fails when it is told to."""

    def __init__(self) -> None:
        self.fails = 0

    def __call__(self) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the driver is gone")

    def fail(self, times: int = 1) -> None:
        self.fails = times


class Actor:
    """A thread that does what it is told, one thing after another."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self.results: list[Any] = []

    def start(self, work: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                self.results.append(work())
            except Exception as exc:
                self.results.append(exc)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self) -> list[Any]:
        """Results so far; an assertion, not a hang, if a thread does not end."""
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread never ended: deadlock"
        return self.results


def wait_until_queued(manager: ModelManager, count: int, reason: str | None = None) -> None:
    """Until that many requests wait (for that reason)."""
    turns = manager._turns
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with turns.cond:
            waiting = [r for r in turns.queue if r.blocked and (reason is None or r.blocked.reason == reason)]
            if len(waiting) >= count:
                return
        time.sleep(0.001)
    raise AssertionError(f"{count} requests never waited for {reason}")
