"""The manager on a virtual device: loading, sharing, freeing, looking."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from lollms_local.errors import InsufficientMemory, LoadError, ModelBusy
from lollms_local.manager import ModelManager, Terms
from tests.virtual_device import Actor, Kind, VirtualDevice, wait_until_queued

MANY = Terms(concurrency=0)
TORCH = Terms(concurrency=0, uses_torch=True)


@pytest.fixture
def device() -> VirtualDevice:
    return VirtualDevice(gpu=100)


@pytest.fixture
def manager(device: VirtualDevice) -> ModelManager:
    return device.manager()


def test_a_model_is_loaded_on_first_use_and_stays(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    with a.lease(manager) as first:
        assert manager.is_loaded("a")
    with a.lease(manager) as second:
        assert second is first
    assert device.log == ["load a"]
    assert device.used["gpu"] == 40


def test_claims_and_load_are_not_asked_for_a_loaded_model(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    a.touch(manager)

    def never() -> Any:
        raise AssertionError("asked again")

    with manager.lease("a", label="a", claims=never, load=never):
        pass


def test_two_requests_at_once_load_a_model_once(device: VirtualDevice, manager: ModelManager) -> None:
    gate = threading.Event()
    a = Kind(device, "a", 40, terms=MANY, on_load=lambda: gate.wait(30))
    actor = Actor()
    for _ in range(5):
        actor.start(lambda: a.touch(manager))
    wait_until_queued(manager, 4, "load")
    gate.set()
    assert actor.join() == [None] * 5
    assert a.loads == 1


def test_a_failed_load_leaves_nothing_behind_and_the_next_one_tries_again(
    device: VirtualDevice, manager: ModelManager
) -> None:
    broken = [True]

    def fail() -> None:
        if broken[0]:
            raise LoadError("The file is damaged.")

    a = Kind(device, "a", 40, on_load=fail, terms=Terms(uses_torch=True, shares_rng=True))
    with pytest.raises(LoadError):
        a.touch(manager)
    assert manager.snapshot() == [] and manager.room("gpu") == 100 and not manager.is_loaded("a")
    broken[0] = False
    actor = Actor()
    actor.start(lambda: a.touch(manager))
    assert actor.join() == [None]


def test_those_who_wait_for_a_load_that_fails_try_themselves(device: VirtualDevice, manager: ModelManager) -> None:
    gate = threading.Event()
    first = [True]

    def fail_once() -> None:
        gate.wait(30)
        if first[0]:
            first[0] = False
            raise LoadError("A passing fault.")

    a = Kind(device, "a", 40, on_load=fail_once)
    actor = Actor()
    actor.start(lambda: a.touch(manager))
    actor.start(lambda: a.touch(manager))
    wait_until_queued(manager, 1, "load")
    gate.set()
    results = actor.join()
    assert sorted(type(r).__name__ for r in results) == ["LoadError", "NoneType"]
    assert a.loads == 2


def test_an_error_in_claims_evicts_nothing(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", 80).touch(manager)

    def refuse() -> dict[str, int]:
        raise LoadError("The header is damaged.")

    with pytest.raises(LoadError), manager.lease("b", label="b", claims=refuse, load=lambda: None):
        pass
    assert device.log == ["load a"]
    Kind(device, "c", 20).touch(manager)


def test_claims_may_ask_for_room(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", 80).touch(manager)
    seen = []

    def claims() -> dict[str, int]:
        seen.append(manager.room("gpu"))
        return {"gpu": 90}

    b = Kind(device, "b", 90)
    with manager.lease("b", label="b", claims=claims, load=b.load):
        assert seen == [100]
        assert manager.room("gpu") == 10


def test_a_load_that_asks_for_another_load_is_refused(device: VirtualDevice, manager: ModelManager) -> None:
    other = Kind(device, "b", 10)
    a = Kind(device, "a", 10, on_load=lambda: other.touch(manager))
    with pytest.raises(ModelBusy, match="inside the loading"):
        a.touch(manager)
    assert manager.snapshot() == []
    other.touch(manager)


def test_a_refused_unload_changes_nothing(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    with a.lease(manager) as model:
        before = manager.snapshot()
        assert manager.unload("a") is False
        assert manager.unload_idle() == 0
        assert manager.snapshot() == before and model.closed == 0 and manager.is_loaded("a")
    assert manager.unload("a") is True
    assert manager.unload("a") is True
    assert manager.unload("never loaded") is True
    assert device.used["gpu"] == 0 and device.faults == []


def test_pinned_models_stay(device: VirtualDevice, manager: ModelManager) -> None:
    manager.pin("a")
    a, b = Kind(device, "a", 60, terms=Terms(idle_unload_s=5)), Kind(device, "b", 60)
    a.touch(manager)
    device.now += 100
    assert manager.sweep() == 0 and manager.unload_idle("gpu") == 0 and manager.room("gpu") == 40
    with pytest.raises(InsufficientMemory, match="pinned"):
        b.touch(manager)
    manager.pin("a", False)
    b.touch(manager)
    assert device.log == ["load a", "close a", "load b"]


def test_idle_models_leave_after_their_time_and_not_before(device: VirtualDevice, manager: ModelManager) -> None:
    a, b = Kind(device, "a", 10, terms=Terms(idle_unload_s=60)), Kind(device, "b", 10)
    b.touch(manager)
    with a.lease(manager):
        device.now += 100
        assert manager.sweep() == 0
    device.now += 59
    assert manager.sweep() == 0
    device.now += 2
    assert manager.sweep() == 1
    assert device.log[-1] == "close a" and manager.is_loaded("b")


def test_the_timer_unloads_without_being_asked(device: VirtualDevice) -> None:
    manager = device.manager(timer=True, clock=time.monotonic)
    closed = threading.Event()
    a = Kind(device, "a", 10, terms=Terms(idle_unload_s=0.02))
    with a.lease(manager) as model:
        model.on_close = closed.set
    assert closed.wait(30)


def test_unload_idle_frees_one_pool_or_all() -> None:
    device = VirtualDevice(gpu=100, ram=100)
    manager = device.manager()
    Kind(device, "a", gpu=10).touch(manager)
    Kind(device, "b", ram=10).touch(manager)
    assert manager.unload_idle("ram") == 1 and device.log[-1] == "close b"
    assert manager.unload_idle() == 1


def test_memory_is_given_back_once_per_batch(device: VirtualDevice) -> None:
    calls = []
    manager = device.manager(give_back=lambda: calls.append(device.used["gpu"]))
    for name in "abc":
        Kind(device, name, 30).touch(manager)
    Kind(device, "d", 90).touch(manager)
    assert calls == [0]


def test_a_model_that_gives_back_too_little_is_named_and_marked(
    device: VirtualDevice, manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    leaky = Kind(device, "leaky", 50, leak=0.5)
    leaky.touch(manager)
    with caplog.at_level(logging.WARNING):
        manager.unload("leaky")
    assert "leaky gave back" in caplog.text
    assert manager.room("gpu") == 75
    leaky.touch(manager)
    assert manager.snapshot()[0].returned == pytest.approx(0.5)


def test_memory_that_does_not_come_back_evicts_more_or_is_refused(device: VirtualDevice, manager: ModelManager) -> None:
    leaky, idle = Kind(device, "leaky", 50, leak=0.5, load_s=1), Kind(device, "idle", 40, load_s=90)
    leaky.touch(manager)
    idle.touch(manager)
    Kind(device, "b", 50).touch(manager)
    assert device.log == ["load leaky", "load idle", "close leaky", "close idle", "load b"]
    with pytest.raises(InsufficientMemory):
        Kind(device, "c", 80).touch(manager)
    assert device.peak["gpu"] <= 100


def test_memory_that_did_not_come_back_is_refused_and_leaves_no_lease(
    device: VirtualDevice, manager: ModelManager
) -> None:
    Kind(device, "leaky", 50, leak=0.5).touch(manager)
    with pytest.raises(InsufficientMemory):
        Kind(device, "a", 80, terms=Terms(uses_torch=True, shares_rng=True)).touch(manager)
    assert device.log == ["load leaky", "close leaky"]
    turns = manager._turns
    assert (
        turns.caller().leases == 0 and not turns.torch_users and turns.rng_owner is None and turns.torch_loader is None
    )


def test_a_little_that_is_slow_to_come_back_does_not_refuse_a_load(device: VirtualDevice) -> None:
    manager = device.manager(headroom_bytes=lambda pool, total: 10)
    Kind(device, "slow", 50, leak=0.08).touch(manager)
    Kind(device, "a", 88).touch(manager)  # 4 of 50 are missing, and half the headroom covers that


def test_a_model_that_cannot_be_closed_cleanly_does_not_fail_the_next(
    device: VirtualDevice, manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn:
        def close(self) -> None:
            raise RuntimeError("will not")

    with manager.lease("s", label="stubborn", claims=lambda: {"gpu": 60}, load=Stubborn):
        pass
    Kind(device, "a", 60).touch(manager)
    assert "stubborn could not be closed cleanly" in caplog.text


def test_close_frees_everything_and_what_is_in_use_when_its_lease_ends(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, b = Kind(device, "a", 40), Kind(device, "b", 40)
    b.touch(manager)
    with a.lease(manager) as model:
        manager.close()
        assert device.log[-1] == "close b" and model.closed == 0
    assert device.used["gpu"] == 0 and manager.snapshot() == []
    with pytest.raises(ModelBusy, match="closed"):
        a.touch(manager)


def test_a_snapshot_tells_who_holds_what(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", 40, load_s=3, terms=Terms(concurrency=0, idle_unload_s=60))
    with a.lease(manager, holder="local_tti"), a.lease(manager, holder="local_ttv"):
        (row,) = manager.snapshot()
        assert (row.label, row.leases, row.holders, row.load_s) == ("a", 2, ("local_tti", "local_ttv"), 3)
    device.now += 7
    (row,) = manager.snapshot()
    assert (row.leases, row.holders, row.idle_s, row.uses, row.idle_unload_s) == (0, (), 7, 2, 60)


def test_messages_hold_no_word_that_makes_the_host_retry(device: VirtualDevice, manager: ModelManager) -> None:
    a, actor = Kind(device, "a", 60), Actor()
    with a.lease(manager):
        actor.start(lambda: a.touch(manager, wait_s=0))
        actor.start(lambda: Kind(device, "b", 60).touch(manager, wait_s=0))
        actor.start(lambda: Kind(device, "c", 600).touch(manager, wait_s=0))
        errors = actor.join()
    assert len(errors) == 3
    for error in errors:
        assert isinstance(error, (ModelBusy, InsufficientMemory))
        assert error.hint
        for word in ("timeout", "timed out", "connection", "unavailable"):
            assert word not in str(error).lower()
