"""Many threads at once, and every order of events for a few: what must never happen."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter, deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lollms_local.errors import InsufficientMemory, LoadError, ModelBusy
from lollms_local.manager import ModelManager, Terms
from lollms_local.turns import Caller, Turns
from tests.virtual_device import Actor, Kind, VirtualDevice, VirtualModel

TERMS = {
    "llm": Terms(),
    "stt": Terms(concurrency=0),
    "tti": Terms(concurrency=0, uses_torch=True),
    "tts": Terms(uses_torch=True, shares_rng=True),
    "ttm": Terms(uses_torch=True, shares_rng=True),
    "ttv": Terms(concurrency=2, uses_torch=True),
}
SIZES = {"llm": 45, "stt": 10, "tti": 40, "tts": 20, "ttm": 30, "ttv": 60}
#: those whose weights can wait in RAM, which has no room for all of them
PARKS = {"stt", "tti", "ttv"}
RAM = 70


class Watch:
    """Who works with what at this moment; complains about what must not be together."""

    def __init__(self, device: VirtualDevice) -> None:
        self.device = device
        self.torch: Counter[int] = Counter()
        self.rng: Counter[int] = Counter()

    def loading(self, terms: Terms) -> None:
        me = threading.get_ident()
        with self.device._lock:
            if terms.uses_torch and any(count for thread, count in self.torch.items() if thread != me):
                self.device.faults.append("a torch load beside torch work")

    def working(self, terms: Terms, step: int) -> None:
        me = threading.get_ident()
        with self.device._lock:
            self.torch[me] += step * terms.uses_torch
            self.rng[me] += step * terms.shares_rng
            if sum(1 for count in self.rng.values() if count) > 1:
                self.device.faults.append("two jobs at the random generator")


def test_sixteen_threads_with_nested_and_crossed_leases_and_failing_loads() -> None:
    device = VirtualDevice(gpu=120, ram=RAM)
    manager = device.manager(budgets={"gpu": 100}, held=lambda pool: device.used[pool])
    watch, chance = Watch(device), random.Random(7)
    outcomes: Counter[str] = Counter()

    def maybe_fail(terms: Terms) -> None:
        watch.loading(terms)
        if chance.random() < 0.1:
            raise LoadError("The file is damaged.")

    kinds = [
        Kind(device, name, SIZES[name], terms=terms, on_load=lambda terms=terms: maybe_fail(terms), parks=name in PARKS)
        for name, terms in TERMS.items()
    ]

    def use(kind: Kind, inner: list[Kind], dice: random.Random) -> None:
        try:
            with kind.lease(manager, holder="stress", shape=dice.choice((None, "small", "big"))) as model:
                with model:
                    watch.working(kind.terms, +1)
                    if kind.terms.concurrency == 1 and model.users > 1 and kind not in inner:
                        device.faults.append(f"{model.users} callers of {kind.name}")
                    watch.working(kind.terms, -1)
                if inner:
                    use(inner[0], inner[1:], dice)
            outcomes["done"] += 1
        except (ModelBusy, InsufficientMemory, LoadError) as exc:
            outcomes[type(exc).__name__] += 1

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(100):
            deed = dice.random()
            if deed < 0.06:
                manager.unload(dice.choice(kinds).name)
            elif deed < 0.08:
                manager.unload_idle()
            else:
                use(dice.choice(kinds), dice.choices(kinds, k=dice.choice((0, 0, 0, 1, 1, 2))), dice)
            if manager.is_loaded("llm"):
                manager.snapshot()

    actor, interval = Actor(), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # let the threads interrupt each other everywhere
    try:
        for seed in range(16):
            actor.start(lambda seed=seed: work(seed))
        assert actor.join() == [None] * 16
    finally:
        sys.setswitchinterval(interval)
    assert device.faults == []
    assert device.peak["gpu"] <= 100 and device.peak["ram"] <= RAM
    assert any(entry.startswith("unpark") for entry in device.log)
    assert not any(thread.name == "lollms-local-meter" for thread in threading.enumerate())
    assert all(row.leases == 0 for row in manager.snapshot())
    assert all(decision.replay() == decision.victims for decision in manager.explain())
    manager.unload_idle()
    assert device.used == {"gpu": 0, "ram": 0} and manager.room("gpu") == 100
    turns = manager._turns
    assert (turns.queue, turns.loader, turns.torch_loader, turns.torch_users, turns.rng_owner) == (
        [],
        None,
        None,
        {},
        None,
    )
    assert min(outcomes[name] for name in ("done", "LoadError", "ModelBusy")) > 10, outcomes


class World:
    """A manager with three callers played by one thread: every step is decided, nothing waits."""

    def __init__(self, sizes: dict[str, int], terms: dict[str, Terms], total: int = 100, policy: str = "cost") -> None:
        self.device = VirtualDevice(gpu=total, ram=RAM)
        self.callers = [Caller() for _ in range(3)]
        self.current = self.callers[0]
        self.fail_next = False
        turns = Turns(caller=lambda: self.current)
        self.manager: ModelManager = self.device.manager(turns=turns, wait_s=0.0, policy=policy)
        self.kinds = {
            n: Kind(self.device, n, s, terms=terms[n], on_load=self._load, parks=n in PARKS) for n, s in sizes.items()
        }
        self.held: list[list[tuple[str, Any, VirtualModel]]] = [[], [], []]
        self.pinned: set[str] = set()

    def _load(self) -> None:
        if self.fail_next:
            self.fail_next = False
            raise LoadError("damaged")

    def users(self, name: str) -> set[int]:
        return {who for who, leases in enumerate(self.held) for held, _, _ in leases if held == name}

    def lease(self, who: int, name: str) -> str:
        """Try; afterwards the result must be the one that the rules give."""
        self.current, kind = self.callers[who], self.kinds[name]
        resident = self.manager.is_loaded(name)
        before = self.device.log.copy()
        lease = kind.lease(self.manager)
        try:
            model = lease.__enter__()
        except (ModelBusy, InsufficientMemory, LoadError) as exc:
            assert not (resident and not self.taken(who, kind)), f"{name} was there and free, yet: {exc}"
            if not isinstance(exc, LoadError):
                assert self.device.log == before, "evicted for nothing"
            if isinstance(exc, InsufficientMemory):
                assert self.unmovable(who) + kind.claims["gpu"] > self.limit()
            return type(exc).__name__
        assert model.closed == 0
        self.held[who].append((name, lease, model))
        return "leased"

    def taken(self, who: int, kind: Kind) -> bool:
        limit, users = kind.terms.concurrency, self.users(kind.name)
        full = bool(limit) and who not in users and len(users) >= limit
        rng = kind.terms.shares_rng and any(
            self.kinds[name].terms.shares_rng for other in range(3) if other != who for name, _, _ in self.held[other]
        )
        return full or rng

    def limit(self) -> int:
        return self.device.total["gpu"] - self.device.by_others["gpu"]

    def unmovable(self, who: int) -> int:
        mine = {name for name, _, _ in self.held[who]}
        return sum(row.charged.get("gpu", 0) for row in self.rows() if row.label in mine | self.pinned)

    def rows(self) -> list[Any]:
        return self.manager.snapshot()

    def release(self, who: int) -> None:
        if self.held[who]:
            _, lease, _ = self.held[who].pop()
            lease.__exit__(None, None, None)

    def unload(self, name: str) -> None:
        assert self.manager.unload(name) == (not self.users(name))

    def check(self) -> None:
        device, manager = self.device, self.manager
        assert device.faults == []
        rows = {row.label: row for row in self.rows()}
        for pool, used in device.used.items():
            assert sum(row.charged.get(pool, 0) for row in rows.values()) == used
        for who in range(3):
            for name, _, model in self.held[who]:
                assert model.closed == 0 and name in rows
        for name, row in rows.items():
            assert row.state == "ready" or (row.state == "parked" and name in PARKS and not row.leases)
            assert row.leases == sum(held == name for leases in self.held for held, _, _ in leases)
        turns = manager._turns
        assert turns.queue == [] and turns.loader is None and turns.torch_loader is None
        assert [caller.leases for caller in self.callers] == [len(leases) for leases in self.held]
        if not any(self.held):
            assert turns.torch_users == {} and turns.rng_owner is None


def test_every_order_of_events_for_three_models_and_three_callers() -> None:
    sizes = {"stt": 40, "tti": 50, "tts": 60}
    terms = {"stt": Terms(), "tti": Terms(concurrency=0, uses_torch=True), "tts": TERMS["tts"]}
    deeds = [("lease", who, name) for who in range(3) for name in sizes]
    deeds += [("release", who, "") for who in range(3)] + [("unload", 0, name) for name in sizes]

    def play(path: tuple[tuple[str, int, str], ...]) -> World:
        world = World(sizes, terms, policy="lru")
        for deed, who, name in path:
            {"lease": world.lease, "release": world.release, "unload": world.unload}[deed](  # type: ignore[operator]
                *([who, name] if deed == "lease" else [who] if deed == "release" else [name])
            )
        world.check()
        return world

    seen, frontier = set(), deque([()])
    while frontier:
        path = frontier.popleft()
        world = play(path)
        state = (
            tuple((row.label, row.state) for row in world.rows()),
            tuple(tuple(name for name, _, _ in leases) for leases in world.held),
        )
        if state in seen or any(len(leases) > 2 for leases in world.held):
            continue
        seen.add(state)
        if len(path) < 5:
            frontier.extend((*path, deed) for deed in deeds)
    assert len(seen) > 100
    assert any(state == "parked" for rows, _ in seen for _, state in rows)


class ManagerMachine(RuleBasedStateMachine):
    """Anything in any order, pins, other programs, failures and a clock included."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SIZES, TERMS)

    names = st.sampled_from(sorted(SIZES))
    callers = st.integers(0, 2)

    @rule(who=callers, name=names)
    def lease(self, who: int, name: str) -> None:
        self.world.lease(who, name)

    @rule(who=callers)
    def release(self, who: int) -> None:
        self.world.release(who)

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.world.unload(name)

    @rule(name=names, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.world.manager.pin(name, pinned)
        (self.world.pinned.add if pinned else self.world.pinned.discard)(name)

    @rule()
    def unload_idle(self) -> None:
        idle = [r for r in self.world.rows() if not r.leases and r.label not in self.world.pinned]
        assert self.world.manager.unload_idle() == len(idle)

    @precondition(lambda self: self.world.device.used["gpu"] <= 60)
    @rule(count=st.integers(0, 40))
    def other_programs_come_and_go(self, count: int) -> None:
        self.world.device.by_others["gpu"] = count

    @rule()
    def the_next_load_fails(self) -> None:
        self.world.fail_next = True

    @rule(seconds=st.integers(1, 500))
    def time_passes(self, seconds: int) -> None:
        self.world.device.now += seconds
        assert self.world.manager.sweep() == 0  # none of these has an idle time

    @invariant()
    def nothing_that_must_not_be(self) -> None:
        self.world.check()
        assert 0 <= self.world.manager.room("gpu") <= 100
        assert all(d.replay() == d.victims for d in self.world.manager.explain()[-2:])


TestAnythingInAnyOrder = ManagerMachine.TestCase
TestAnythingInAnyOrder.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
