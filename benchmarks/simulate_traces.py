"""How long people wait for models, by what leaves first: a simulation over three traces.

    python benchmarks/simulate_traces.py

The stall of a trace is the sum of the load seconds of all requests whose model was not in memory. Each trace is run

* through the project's own `ModelManager` and `plan_eviction`, with both policies ("cost" is the default), on a device
  that exists only as numbers;
* with the smallest idle model leaving first;
* in the host's cooperative way: whoever loads has everybody else unload first;
* by an oracle that knows the whole trace and finds the least stall by dynamic programming over all sets of models that
  fit. With models of unequal size and cost that, and not Belady's furthest-next-use rule, is the true optimum.

Requests come one after the other, so a model in use never has to stay; every request must be served from memory. Where
the optimum equals LRU there was nothing to choose: whatever comes in takes the room of all that is there.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lollms_local.devices import Memory
from lollms_local.eviction import Policy
from lollms_local.manager import ModelManager
from lollms_local.turns import Turns

__all__ = ["MODELS", "TRACES", "Model", "Request", "cooperative", "least_stall", "managed", "smallest_first", "stalls"]

GB = 1_000_000_000
POOL = "cuda:0"


@dataclass(frozen=True)
class Model:
    """What a model takes, and what bringing it in costs."""

    size_bytes: int
    load_s: float


@dataclass(frozen=True)
class Request:
    """One use of a model, so many seconds long, after a pause."""

    model: str
    job_s: float
    pause_s: float = 0.0


#: Bytes and seconds with the files in the system's cache. All but Whisper: random weights of the published size on one
#: NVIDIA H100, loaded by this project's engines (benchmarks/bench_gpu.py). Whisper: the starter model tiny.en on 2 CPU
#: cores, charge and median of five loads through Runtime.lease. The second chat model, one that sees, is taken to cost
#: what the first does.
MODELS: dict[str, Model] = {
    "chat": Model(5_600_000_000, 0.9),  # 8B, Q4_0, with its cache
    "vision": Model(5_600_000_000, 0.9),  # 8B, Q4_0, with its cache
    "image": Model(6_900_000_000, 2.3),  # SDXL
    "video": Model(6_000_000_000, 1.4),  # Wan 1.3B
    "music": Model(6_900_000_000, 5.3),  # MusicGen-large
    "speech": Model(2_300_000_000, 1.3),  # Bark
    "hear": Model(357_000_000, 1.3),  # Whisper
}


# --- traces -------------------------------------------------------------------------------------------------------


@dataclass
class _Story:
    """A trace being written."""

    requests: list[Request] = field(default_factory=list)
    pause_s: float = 0.0

    def use(self, model: str, job_s: float) -> None:
        self.requests.append(Request(model, job_s, self.pause_s))
        self.pause_s = 0.0


def chat_with_pictures(chance: random.Random, turns: int = 400) -> list[Request]:
    """An evening of chat: an image now and then, sometimes by voice, seldom a film or a song."""
    story = _Story()
    by_voice = False
    for _ in range(turns):
        if chance.random() < 0.05:
            by_voice = not by_voice
        if by_voice:
            story.use("hear", 1)
        story.use("chat", 8)
        if by_voice:
            story.use("speech", 6)
        if chance.random() < 0.12:
            for _ in range(chance.randint(1, 3)):  # people try again until it pleases them
                story.use("image", 5)
        if chance.random() < 0.02:
            story.use(chance.choice(("video", "music")), 30)
        story.pause_s += chance.expovariate(1 / 40)
    return story.requests


def podcast(chance: random.Random, episodes: int = 25) -> list[Request]:
    """Episodes of several parts: written, spoken, checked by ear, then music between them; a cover for each."""
    story = _Story()
    for _ in range(episodes):
        for _ in range(chance.randint(3, 6)):
            story.use("chat", 20)
            for _ in range(chance.randint(2, 5)):
                story.use("speech", 15)
                story.use("hear", 2)
            story.use("music", 25)
        story.use("image", 5)
        story.pause_s += 60
    return story.requests


def captions_and_chat(chance: random.Random, pictures: int = 250) -> list[Request]:
    """A batch makes pictures and describes them while a person chats, and now and then has an answer read out."""
    story = _Story()
    for number in range(pictures):
        story.use("vision", 4)
        if number % 10 == 9:  # those that came out badly are made anew
            for _ in range(chance.randint(1, 3)):
                story.use("image", 5)
        if chance.random() < 0.25:
            story.use("chat", 8)
            if chance.random() < 0.3:
                story.use("speech", 6)
        if chance.random() < 0.01:
            story.use("music", 25)
    return story.requests


TRACES: dict[str, Callable[[random.Random], list[Request]]] = {
    "chat with an image now and then": chat_with_pictures,
    "podcast": podcast,
    "batch captioning with chat": captions_and_chat,
}


# --- what leaves first --------------------------------------------------------------------------------------------


class _Device:
    """A clock that only jobs and loads move, and a pool of `total` bytes."""

    def __init__(self, total: int) -> None:
        self.now_s = self.stall_s = 0.0
        self.total, self.used = total, 0

    def memory(self, pool: str) -> Memory:
        return Memory(self.total, self.total - self.used)

    def load(self, model: Model) -> _Loaded:
        self.now_s += model.load_s
        self.stall_s += model.load_s
        self.used += model.size_bytes
        assert self.used <= self.total
        return _Loaded(self, model.size_bytes)


@dataclass
class _Loaded:
    device: _Device
    size_bytes: int

    def close(self) -> None:
        self.device.used -= self.size_bytes


def managed(trace: Sequence[Request], models: dict[str, Model], budget_bytes: int, policy: Policy) -> float:
    """Seconds of loading under the project's own manager."""
    device = _Device(budget_bytes)
    manager = ModelManager(
        device.memory, headroom_bytes=lambda pool, total: 0, clock=lambda: device.now_s, give_back=lambda: None,
        policy=policy, turns=Turns(), timer=False,
    )  # fmt: skip
    for request in trace:
        model = models[request.model]
        device.now_s += request.pause_s
        with manager.lease(
            request.model,
            label=request.model,
            claims=lambda model=model: {POOL: model.size_bytes},  # type: ignore[misc]
            load=lambda model=model: device.load(model),  # type: ignore[misc]
        ):
            device.now_s += request.job_s
    return device.stall_s


def smallest_first(trace: Sequence[Request], models: dict[str, Model], budget_bytes: int) -> float:
    """Seconds of loading if the smallest model leaves, then the next, until it is enough."""
    stall_s, held = 0.0, set[str]()
    for request in trace:
        if request.model not in held:
            held.add(request.model)
            stall_s += models[request.model].load_s
            for name in sorted(held - {request.model}, key=lambda name: models[name].size_bytes):
                if sum(models[name].size_bytes for name in held) <= budget_bytes:
                    break
                held.remove(name)
    return stall_s


def cooperative(trace: Sequence[Request], models: dict[str, Model]) -> float:
    """Seconds of loading if everybody else leaves before each load, as the host's `unload_before_load` has it."""
    held, stall_s = "", 0.0
    for request in trace:
        if request.model != held:
            held, stall_s = request.model, stall_s + models[request.model].load_s
    return stall_s


def least_stall(trace: Sequence[Request], models: dict[str, Model], budget_bytes: int) -> float:
    """The least stall that any choice of victims can reach: exact, by all sets of models that fit."""
    names = sorted({request.model for request in trace})
    sets = [
        frozenset(chosen)
        for count in range(1, len(names) + 1)
        for chosen in itertools.combinations(names, count)
        if sum(models[name].size_bytes for name in chosen) <= budget_bytes
    ]
    after: dict[str, dict[frozenset[str], list[frozenset[str]]]] = {name: {} for name in names}
    best: dict[frozenset[str], float] = {frozenset(): 0.0}
    for request in trace:
        name, following = request.model, dict[frozenset[str], float]()
        for here, stall_s in best.items():
            if name in here:
                following[here] = min(stall_s, following.get(here, stall_s))
                continue
            if here not in after[name]:
                after[name][here] = [s for s in sets if name in s and s - {name} <= here]
            for there in after[name][here]:
                cost = stall_s + models[name].load_s
                following[there] = min(cost, following.get(there, cost))
        best = following
    return min(best.values())


# --- the table ----------------------------------------------------------------------------------------------------


def stalls(trace: Sequence[Request], models: dict[str, Model], budget_bytes: int) -> dict[str, float]:
    """Stall seconds by way of choosing."""
    return {
        "cost": managed(trace, models, budget_bytes, "cost"),
        "lru": managed(trace, models, budget_bytes, "lru"),
        "smallest": smallest_first(trace, models, budget_bytes),
        "cooperative": cooperative(trace, models),
        "optimum": least_stall(trace, models, budget_bytes),
    }


def main() -> None:
    """Print one row per trace and budget."""
    parser = argparse.ArgumentParser(description="Stall seconds by eviction policy.")
    parser.add_argument("--seeds", type=int, default=5, help="traces of each kind; their stalls are added")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.6, 0.8], help="budget / sum of the models")
    args = parser.parse_args()
    print("| trace | budget | cost | LRU | smallest first | cooperative | optimum | cost / LRU | cost / optimum |")
    print("|---|---|---|---|---|---|---|---|---|")
    for share in args.shares:
        together: dict[str, float] = {}
        for name, write in TRACES.items():
            traces = [write(random.Random(seed)) for seed in range(args.seeds)]
            used = {request.model for trace in traces for request in trace}
            models = {key: model for key, model in MODELS.items() if key in used}
            sizes = [model.size_bytes for model in models.values()]
            budget = max(max(sizes), int(share * sum(sizes)))
            rows = [stalls(trace, models, budget) for trace in traces]
            total = {key: sum(row[key] for row in rows) for key in rows[0]}
            together = {key: together.get(key, 0.0) + seconds for key, seconds in total.items()}
            print(_row(name, f"{share:.0%} = {budget / GB:.1f} GB", total))
        print(_row("**all three**", f"{share:.0%}", together))


def _row(name: str, budget: str, total: dict[str, float]) -> str:
    seconds = " | ".join(f"{value:.0f} s" for value in total.values())
    return (
        f"| {name} | {budget} | {seconds} "
        f"| {total['cost'] / total['lru']:.2f} | {total['cost'] / total['optimum']:.2f} |"
    )


if __name__ == "__main__":
    main()
