"""Failures and interruptions between the manager's own steps: nothing stays behind that others would wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lollms_local import leasing
from lollms_local.errors import InsufficientMemory, ModelBusy
from lollms_local.idle import IdleTimer
from lollms_local.ledger import Ledger
from lollms_local.manager import ModelManager, Terms
from tests.virtual_device import Actor, Cleaning, Kind, VirtualDevice, wait_until_queued


@pytest.fixture
def device() -> VirtualDevice:
    return VirtualDevice(gpu=100, ram=100)


def interrupt() -> None:
    raise KeyboardInterrupt


def states(manager: ModelManager) -> dict[str, str]:
    return {row.label: row.state for row in manager.snapshot()}


def works_again(manager: ModelManager, kind: Kind) -> bool:
    """Whether another thread gets the model."""
    actor = Actor()
    actor.start(lambda: kind.touch(manager))
    return actor.join()[-1] is None


def test_a_driver_that_cannot_be_asked_during_an_eviction_leaves_no_row_behind(
    device: VirtualDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = device.manager()
    a, b = Kind(device, "a", 60), Kind(device, "b", 60)
    a.touch(manager)
    asked, real = [], manager._table.pools.memory

    def memory(pool: str) -> Any:
        if any(row.state == "closing" for row in manager._table.slots.values()) and not asked:
            asked.append(pool)
            raise OSError("the driver is busy")
        return real(pool)

    monkeypatch.setattr(type(manager._table.pools), "memory", property(lambda pools: memory))
    with pytest.raises(OSError, match="busy"):
        b.touch(manager)
    assert states(manager) == {} and device.used["gpu"] == 0
    assert works_again(manager, b)


def test_an_interruption_of_one_close_does_not_keep_the_others_from_leaving(device: VirtualDevice) -> None:
    manager = device.manager()
    a, c = Kind(device, "a", 40, parks=True), Kind(device, "c", 40)
    a.touch(manager)
    c.touch(manager)
    a.models[0].on_park, c.models[0].on_close = interrupt, interrupt
    with pytest.raises(KeyboardInterrupt):
        Kind(device, "b", 100).touch(manager)
    assert states(manager) == {} and (a.models[0].closed, c.models[0].closed) == (1, 1)


def test_one_unloaded_while_it_is_parked_goes_although_its_close_is_interrupted(device: VirtualDevice) -> None:
    manager = device.manager()
    a = Kind(device, "a", 60, parks=True)
    a.touch(manager)
    a.models[0].on_park, a.models[0].on_close = lambda: manager.unload("a"), interrupt
    with pytest.raises(KeyboardInterrupt):
        Kind(device, "b", 60).touch(manager)
    assert states(manager) == {}


def test_a_failure_after_a_load_gives_its_lease_and_turns_back(device: VirtualDevice) -> None:
    cleaning = Cleaning()
    manager = device.manager(give_back=cleaning, budgets={"gpu": 95})
    b = Kind(device, "b", 40)
    a = Kind(device, "a", 50, real=60, terms=Terms(uses_torch=True, shares_rng=True), on_load=cleaning.fail)
    b.touch(manager)
    with pytest.raises(RuntimeError):
        a.touch(manager)
    assert [row.leases for row in manager.snapshot()] == [0]
    assert manager._turns.torch_users == {} and manager._turns.rng_owner is None
    a.on_load = None
    assert works_again(manager, a)


def test_an_interruption_before_the_work_begins_gives_the_lease_back(
    device: VirtualDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cores:
        def begin(self) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(leasing, "CORES", Cores())
    manager = device.manager(held=lambda pool: device.used[pool])
    with pytest.raises(KeyboardInterrupt):
        Kind(device, "a", ram=40).touch(manager, shape="big")
    assert [row.leases for row in manager.snapshot()] == [0]
    assert not any(thread.name == "lollms-local-meter" for thread in threading.enumerate())


def test_a_return_that_waited_for_room_uses_its_copy(device: VirtualDevice) -> None:
    manager = device.manager()
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
    a.touch(manager)
    b.touch(manager)
    actor = Actor()
    with b.lease(manager):
        actor.start(lambda: a.touch(manager))
        wait_until_queued(manager, 1, "room")
    assert actor.join() == [None]
    assert a.loads == 1 and device.log[-2:] == ["close b", "unpark a"]


@pytest.mark.parametrize("held", [True, False])
def test_a_return_that_waited_for_another_s_turn_is_still_planned_anew(device: VirtualDevice, held: bool) -> None:
    torch = Terms(uses_torch=True)
    manager = device.manager()
    a, b = Kind(device, "a", gpu=60, parks=True, terms=torch), Kind(device, "b", gpu=60)
    worker, elsewhere = Kind(device, "worker", ram=10, terms=torch), Kind(device, "a", gpu=20, ram=20, terms=torch)
    a.touch(manager)
    b.touch(manager)
    actor, lease = Actor(), b.lease(manager)
    with worker.lease(manager):
        actor.start(lambda: elsewhere.touch(manager))
        wait_until_queued(manager, 1, "torch")
        if held:
            lease.__enter__()
        else:
            manager.unload("b")
            device.by_others["gpu"] = 50
    assert actor.join() == [None]
    if held:
        lease.__exit__(None, None, None)
    assert device.used == {"gpu": 80 if held else 20, "ram": 30}


def test_the_copy_stays_until_it_is_sure_that_its_successor_has_room(device: VirtualDevice) -> None:
    manager = device.manager(wait_s=0)
    a, b, c = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=50), Kind(device, "c", gpu=40, leak=0.9)
    a.touch(manager)
    b.touch(manager)
    c.touch(manager)
    with b.lease(manager), pytest.raises((InsufficientMemory, ModelBusy)):
        Kind(device, "a", gpu=50).touch(manager)  # c was to make room for it, and gave back a tenth
    assert states(manager)["a"] == "parked"


def test_nothing_is_evicted_for_room_that_is_coming_anyway(device: VirtualDevice) -> None:
    manager = device.manager()
    b, c, x = Kind(device, "b", 50), Kind(device, "c", 40), Kind(device, "x", 40)
    b.touch(manager)
    c.touch(manager)
    actor = Actor()

    def ask() -> None:
        actor.start(lambda: x.touch(manager))
        wait_until_queued(manager, 1, "load")

    b.models[0].on_close = ask
    manager.unload("b")
    assert actor.join() == [None] and "close c" not in device.log


def test_two_that_need_more_at_once_send_one_neighbour_away(device: VirtualDevice) -> None:
    ledger = Ledger()
    ledger.note_peak("a", {"gpu": 20}, "big", {"gpu": 60})
    manager = device.manager(ledger=ledger, own=lambda pool: device.used[pool])
    a, b, c = Kind(device, "a", 20, terms=Terms(concurrency=0)), Kind(device, "b", 40), Kind(device, "c", 40)
    for kind in (a, b, c):
        kind.touch(manager)
    actor, first = Actor(), []

    def ask() -> None:
        if not first:
            first.append(actor.start(lambda: a.touch(manager, shape="big")))
            first[0].join(30)

    b.models[0].on_close = c.models[0].on_close = ask
    a.touch(manager, shape="big")
    assert actor.join() == [None]
    assert sum(entry.startswith("close") for entry in device.log) == 1


def test_a_neighbour_that_cannot_count_its_weights_costs_no_one_a_load(device: VirtualDevice) -> None:
    manager = device.manager()
    a = Kind(device, "a", 60, parks=True)
    a.touch(manager)

    class Broken(type(a.models[0])):  # type: ignore[misc]
        @property
        def parked_bytes(self) -> int:
            raise RuntimeError("a tensor without memory")

    a.models[0].__class__ = Broken
    Kind(device, "b", 60).touch(manager)
    assert states(manager) == {"b": "ready"}


def test_the_idle_timer_outlives_a_failed_sweep() -> None:
    lock, swept = threading.Condition(), threading.Semaphore(0)
    left = [0.0, 0.0, threading.TIMEOUT_MAX, threading.TIMEOUT_MAX]

    def sweep() -> None:
        swept.release()
        if len(left) > 2:
            raise RuntimeError("the driver is gone")

    timer = IdleTimer(lambda: left.pop(0) if len(left) > 1 else left[0], sweep, lock)
    with lock:
        timer.look_again()
    assert swept.acquire(timeout=30)
    thread = timer._thread
    if thread is not None:
        thread.join(30)
    assert timer._thread is None, "it ended because nothing is due, and can be started again"


def test_processes_add_shapes_to_one_model_and_keep_the_newer_load(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    Ledger(file).note("a", {}, {"gpu": 1})
    one, two = Ledger(file), Ledger(file)
    look: Callable[[Ledger], object] = lambda ledger: ledger.measured("a", {})  # noqa: E731
    look(one), look(two)
    one.note_peak("a", {}, "big", {"gpu": 9})
    two.note_peak("a", {}, "small", {"gpu": 3})
    two.note("a", {}, {"gpu": 2})
    one.note("c", {}, {"gpu": 5})
    assert set(Ledger(file).peaks("a", {})) == {"big", "small"}
    assert look(Ledger(file)) == {"gpu": 2}
