"""The manager on a virtual card beside RAM: weights that wait in RAM, and come back without a load."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lollms_local.errors import InsufficientMemory, LoadError, ModelBusy
from lollms_local.manager import ModelManager, Terms
from tests.virtual_device import Actor, Cleaning, Kind, VirtualDevice, VirtualModel


@pytest.fixture
def device() -> VirtualDevice:
    return VirtualDevice(gpu=100, ram=100)


@pytest.fixture
def manager(device: VirtualDevice) -> ModelManager:
    return device.manager()


def row(manager: ModelManager, label: str) -> Any:
    return next(row for row in manager.snapshot() if row.label == label)


def test_what_must_leave_the_card_waits_in_ram_and_returns_without_a_load(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
    with a.lease(manager) as first:
        pass
    b.touch(manager)
    assert device.used == {"gpu": 60, "ram": 60}
    assert row(manager, "a").state == "parked" and row(manager, "a").charged == {"ram": 60}
    with a.lease(manager) as again:
        assert again is first and again.where == "card"
    assert device.log == ["load a", "park a", "load b", "close b", "unpark a"]
    assert device.used == {"gpu": 60, "ram": 0}
    assert row(manager, "a").charged == {"gpu": 60} and row(manager, "a").return_s == a.return_s
    assert a.loads == 1


def test_a_return_asks_neither_for_claims_nor_for_a_load(device: VirtualDevice, manager: ModelManager) -> None:
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
    a.touch(manager)
    b.touch(manager)

    def never() -> Any:
        raise AssertionError("the disk was read")

    with manager.lease("a", label="a", claims=never, load=never) as model:
        assert model.where == "card"


def test_without_room_in_ram_it_is_unloaded(device: VirtualDevice) -> None:
    for taken, manager in ((50, device.manager()), (0, device.manager(budgets={"ram": 50}))):
        device.by_others["ram"], device.log = taken, []
        a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
        a.touch(manager)
        b.touch(manager)
        assert device.log == ["load a", "close a", "load b"]
        manager.close()


def test_parking_can_be_switched_off(device: VirtualDevice) -> None:
    manager = device.manager(park=False)
    Kind(device, "a", gpu=60, parks=True).touch(manager)
    Kind(device, "b", gpu=60).touch(manager)
    assert device.log == ["load a", "close a", "load b"]


def test_parked_weights_make_room_in_ram_for_what_needs_it(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, c = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60), Kind(device, "c", ram=70)
    a.touch(manager)
    b.touch(manager)
    c.touch(manager)
    assert device.log == ["load a", "park a", "load b", "close a", "load c"]
    assert device.used == {"gpu": 60, "ram": 70}


def test_the_last_decision_says_what_was_parked(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, c = Kind(device, "a", gpu=40, parks=True), Kind(device, "b", gpu=40), Kind(device, "c", gpu=100)
    a.touch(manager)
    b.touch(manager)
    c.touch(manager)
    decision = manager.explain()[-1]
    assert set(decision.victims or ()) == {"a", "b"} and decision.parked == ("a",)
    assert decision.free_after["gpu"] - decision.free_before["gpu"] == 80
    assert decision.replay() == decision.victims


def test_what_can_come_back_from_ram_leaves_before_what_must_be_loaded(device: VirtualDevice) -> None:
    """Both took a second to load; once it is known that one comes back in a tenth of it, that one leaves."""
    manager = device.manager()
    a, b = Kind(device, "a", gpu=50, parks=True, return_s=0.1), Kind(device, "b", gpu=50)
    whole = Kind(device, "whole", gpu=100)
    a.touch(manager)
    whole.touch(manager)
    a.touch(manager)
    b.touch(manager)
    device.now += 100
    a.touch(manager)  # the longest idle is b, so equal costs would send b away
    device.log.clear()
    Kind(device, "c", gpu=50).touch(manager)
    assert device.log == ["park a", "load c"]


def test_a_parked_model_is_unloaded_for_good_by_unload_and_by_idle_time(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a = Kind(device, "a", gpu=60, parks=True, terms=Terms(idle_unload_s=10))
    b = Kind(device, "b", gpu=60)
    for leave in (lambda: manager.unload("a"), lambda: setattr(device, "now", device.now + 11) or manager.sweep()):
        a.touch(manager)
        b.touch(manager)
        assert row(manager, "a").state == "parked" and not manager.is_loaded("a")
        assert leave()
        assert [r.label for r in manager.snapshot()] == ["b"] and device.used["ram"] == 0
        manager.unload("b")
    assert a.loads == 2 and a.models[0].closed == 1


def test_unloaded_while_it_is_being_parked_it_goes(device: VirtualDevice, manager: ModelManager) -> None:
    answers: list[bool] = []
    a = Kind(device, "a", gpu=60, parks=True)
    a.touch(manager)
    a.models[0].on_park = lambda: answers.append(manager.unload("a"))
    Kind(device, "b", gpu=60).touch(manager)
    assert answers == [True]
    assert [r.label for r in manager.snapshot()] == ["b"] and device.used == {"gpu": 60, "ram": 0}
    assert a.models[0].closed == 1 and device.faults == []


def test_one_that_cannot_be_parked_after_all_is_unloaded(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", gpu=60, parks=True)
    a.touch(manager)

    def fail() -> None:
        raise RuntimeError("no such driver")

    a.models[0].on_park = fail
    Kind(device, "b", gpu=60).touch(manager)
    assert device.log == ["load a", "close a", "load b"] and device.used == {"gpu": 60, "ram": 0}
    assert [r.label for r in manager.snapshot()] == ["b"]


def test_a_return_that_fails_leaves_nothing_and_the_next_request_loads_it(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, b = Kind(device, "a", gpu=60, parks=True, terms=Terms(uses_torch=True)), Kind(device, "b", gpu=60)
    a.touch(manager)
    b.touch(manager)

    def fail() -> None:
        raise LoadError("the bus broke")

    a.models[0].on_unpark = fail
    with pytest.raises(LoadError):
        a.touch(manager)
    assert device.used == {"gpu": 0, "ram": 0} and manager.snapshot() == []
    a.touch(manager)
    assert a.loads == 2 and device.used == {"gpu": 60, "ram": 0}


def test_a_return_that_runs_out_of_memory_makes_idle_models_leave_and_tries_once_more(device: VirtualDevice) -> None:
    manager = device.manager()
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=50, real=60)
    small = Kind(device, "small", gpu=20)
    a.touch(manager)
    b.touch(manager)
    small.touch(manager)
    device.log.clear()
    tries: list[int] = []

    def once() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("CUDA out of memory.")

    a.models[0].on_unpark = once
    with a.lease(manager) as model:
        assert model.where == "card"
    assert device.log == ["close b", "close small", "unpark a"] and a.loads == 1


def test_a_return_that_needs_the_room_of_its_own_copy_loads_anew() -> None:
    """On the card it works with 30 of RAM besides, which its copy and another model leave no room for."""
    device = VirtualDevice(gpu=100, ram=100)
    manager = device.manager()
    a, b = Kind(device, "a", gpu=60, ram=30, parks=True), Kind(device, "b", gpu=60)
    c = Kind(device, "c", ram=40)
    a.touch(manager)
    b.touch(manager)
    with c.lease(manager):
        assert row(manager, "a").charged == {"ram": 60}
        actor = Actor()
        actor.start(lambda: a.touch(manager))
        assert actor.join() == [None]
    assert a.loads == 2 and device.faults == []
    assert device.used == {"gpu": 60, "ram": 70}


def test_those_who_want_it_while_it_is_parked_or_returns_wait_and_get_the_one_copy(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, b = Kind(device, "a", gpu=60, parks=True, terms=Terms(concurrency=0)), Kind(device, "b", gpu=60)
    a.touch(manager)
    actor, gate = Actor(), threading.Event()
    a.models[0].on_park = lambda: (actor.start(lambda: a.touch(manager)), None)[1]
    a.models[0].on_unpark = lambda: (actor.start(lambda: a.touch(manager)), gate.set())[1]
    b.touch(manager)
    assert gate.wait(30)
    assert actor.join() == [None, None]
    assert a.loads == 1 and device.faults == []


def test_release_is_verified_for_parking_too(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", gpu=60, parks=True, leak=0.5)
    a.touch(manager)
    Kind(device, "b", gpu=50).touch(manager)
    assert row(manager, "a").returned == pytest.approx(0.5)


def test_closing_the_manager_frees_what_is_parked(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", gpu=60, parks=True).touch(manager)
    Kind(device, "b", gpu=60).touch(manager)
    manager.close()
    assert device.used == {"gpu": 0, "ram": 0} and manager.snapshot() == []


def test_too_large_stays_too_large(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", gpu=60, parks=True).touch(manager)
    with pytest.raises(InsufficientMemory):
        Kind(device, "b", gpu=101).touch(manager)
    assert device.log == ["load a"]
    model: VirtualModel
    with Kind(device, "a", gpu=60).lease(manager) as model:
        assert model.where == "card"


def test_a_pinned_model_is_not_locked_out_by_its_own_copy() -> None:
    device = VirtualDevice(gpu=100, ram=100)
    manager = device.manager()
    a, b = Kind(device, "a", gpu=60, ram=30, parks=True), Kind(device, "b", gpu=60)
    a.touch(manager)
    b.touch(manager)
    manager.pin("a")
    device.by_others["ram"] = 20  # its copy and what it works in do not fit side by side
    with a.lease(manager) as model:
        assert model.where == "card"


def test_parking_leaves_the_ram_that_the_newcomer_needs(device: VirtualDevice) -> None:
    manager = device.manager()
    c, b = Kind(device, "c", ram=45), Kind(device, "b", gpu=50, parks=True)
    c.touch(manager)
    b.touch(manager)
    device.log.clear()
    Kind(device, "a", gpu=60, ram=50).touch(manager)
    assert device.log == ["close b", "load a"]
    assert {row.label for row in manager.snapshot()} == {"c", "a"}


def test_a_return_without_room_is_planned_anew_from_its_files(device: VirtualDevice, manager: ModelManager) -> None:
    """As one that was unloaded would be: there may be a smaller place for it, of which a copy knows nothing."""
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
    a.touch(manager)
    b.touch(manager)
    manager.unload("b")
    device.by_others["gpu"] = 50
    device.log.clear()
    offloaded = Kind(device, "a", gpu=20, ram=30)
    with offloaded.lease(manager) as model:
        assert model.sizes == {"gpu": 20, "ram": 30}
    assert device.log == ["close a", "load a"] and device.used == {"gpu": 20, "ram": 30}
    assert row(manager, "a").charged == {"gpu": 20, "ram": 30}


def test_a_return_that_would_wait_for_room_is_planned_anew_as_well(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
    a.touch(manager)
    with b.lease(manager):
        actor = Actor()
        actor.start(lambda: Kind(device, "a", gpu=20).touch(manager))
        assert actor.join() == [None]
    assert device.used == {"gpu": 80, "ram": 0}


def test_where_there_is_no_place_at_all_the_copy_stays(device: VirtualDevice, manager: ModelManager) -> None:
    a, b = Kind(device, "a", gpu=60, parks=True), Kind(device, "b", gpu=60)
    a.touch(manager)
    with b.lease(manager):
        device.log.clear()
        with pytest.raises((InsufficientMemory, ModelBusy)):
            a.touch(manager)
        assert device.log == [] and row(manager, "a").state == "parked"
    a.touch(manager)
    assert a.loads == 1


def test_what_is_to_be_freed_is_not_parked(device: VirtualDevice) -> None:
    a = Kind(device, "a", gpu=60, parks=True, terms=Terms(idle_unload_s=10))
    for number, free in enumerate((
        lambda manager: manager.unload("a"),
        lambda manager: manager.unload_idle(),
        lambda manager: manager.close(),
        lambda manager: setattr(device, "now", device.now + 11) or manager.sweep(),
    )):  # fmt: skip
        manager = device.manager()
        a.touch(manager)
        free(manager)
        assert manager.snapshot() == [] and device.used == {"gpu": 0, "ram": 0}
        assert a.models[number].closed == 1
    manager = device.manager()
    with a.lease(manager):
        manager.close()
    assert device.used == {"gpu": 0, "ram": 0} and manager.snapshot() == []


def test_a_manager_closed_while_it_parks_keeps_nothing(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", gpu=60, parks=True)
    a.touch(manager)
    a.models[0].on_park = manager.close
    Kind(device, "b", gpu=60).touch(manager)
    with pytest.raises(ModelBusy):
        a.touch(manager)
    assert manager.snapshot() == [] and device.used == {"gpu": 0, "ram": 0} and a.models[0].closed == 1


def test_an_interruption_while_parking_loses_neither_memory_nor_rows(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, c = Kind(device, "a", gpu=40, parks=True), Kind(device, "c", gpu=40, parks=True)
    a.touch(manager)
    c.touch(manager)

    def interrupt() -> None:
        raise KeyboardInterrupt

    a.models[0].on_park = interrupt
    with pytest.raises(KeyboardInterrupt):
        Kind(device, "b", gpu=100).touch(manager)
    assert sum(device.used.values()) == sum(sum(row.charged.values()) for row in manager.snapshot())
    assert all(row.state in ("ready", "parked") for row in manager.snapshot())
    Kind(device, "b", gpu=100).touch(manager)


def test_a_failure_of_the_cleaning_up_leaves_no_row_behind(device: VirtualDevice) -> None:
    cleaning = Cleaning()
    manager = device.manager(give_back=cleaning)
    a = Kind(device, "a", gpu=60, parks=True)
    a.touch(manager)
    a.models[0].on_park = lambda: (cleaning.fail(), manager.unload("a"))
    with pytest.raises(RuntimeError):
        Kind(device, "b", gpu=60).touch(manager)
    assert manager.snapshot() == [] and a.models[0].closed == 1
    a.touch(manager)


def test_idle_time_goes_on_while_a_model_is_parked_and_stands_still_for_a_pinned_one(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a = Kind(device, "a", gpu=60, parks=True, terms=Terms(idle_unload_s=10))
    a.touch(manager)
    due: list[float] = []
    a.models[0].on_park = lambda: due.append(manager._due_s())
    Kind(device, "b", gpu=60).touch(manager)
    assert due == [10] and manager._due_s() <= 10
    manager.pin("a")
    device.now += 100
    assert manager._due_s() == threading.TIMEOUT_MAX and manager.sweep() == 0
    manager.pin("a", False)
    assert manager.sweep() == 1


def test_weights_are_counted_for_idle_models_only_and_once_between_two_jobs(
    device: VirtualDevice, manager: ModelManager
) -> None:
    counted: list[int] = []

    class Counts(VirtualModel):
        @property
        def parked_bytes(self) -> int:
            counted.append(self.users)
            return 40

        @parked_bytes.setter
        def parked_bytes(self, count: int) -> None:
            pass

    model = Counts(device, "a", {"gpu": 40}, parks=True)
    device.take("gpu", 40)
    device.live["a"], device.by_others["ram"] = 1, 100
    lease = {"label": "a", "claims": lambda: {"gpu": 40}, "load": lambda: model, "terms": Terms(concurrency=0)}
    with manager.lease("a", **lease) as held, held:
        Kind(device, "b", gpu=60).touch(manager)
        Kind(device, "c", gpu=60).touch(manager)
    assert counted == []
    for name in ("d", "e", "f"):
        with Kind(device, name, gpu=20).lease(manager):
            pass
    assert counted == [0]


def test_a_failed_return_whose_cleaning_up_fails_too_holds_neither_row_nor_turn(device: VirtualDevice) -> None:
    cleaning = Cleaning()
    manager = device.manager(give_back=cleaning)
    a, b = (
        Kind(device, "a", gpu=60, parks=True, terms=Terms(uses_torch=True, shares_rng=True)),
        Kind(device, "b", gpu=60),
    )
    a.touch(manager)
    b.touch(manager)
    manager.unload("b")

    def fail() -> None:
        cleaning.fail()
        raise LoadError("the bus broke")

    a.models[0].on_unpark = fail
    with pytest.raises(RuntimeError):
        a.touch(manager)
    assert manager.snapshot() == [] and device.used == {"gpu": 0, "ram": 0}
    actor = Actor()
    actor.start(lambda: a.touch(manager))
    assert actor.join() == [None]
