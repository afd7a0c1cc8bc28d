"""The manager on a virtual device: making room, sizes, running out of memory."""

from __future__ import annotations

from typing import Any

import pytest

from lollms_local.devices import Memory
from lollms_local.errors import InsufficientMemory, LoadError
from lollms_local.manager import ModelManager, Terms
from lollms_local.memory import Charge, Pools
from tests.virtual_device import Kind, VirtualDevice

MANY = Terms(concurrency=0)
TORCH = Terms(concurrency=0, uses_torch=True)


@pytest.fixture
def device() -> VirtualDevice:
    return VirtualDevice(gpu=100)


@pytest.fixture
def manager(device: VirtualDevice) -> ModelManager:
    return device.manager()


def test_idle_models_make_room_and_leased_ones_stay(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, c = Kind(device, "a", 40), Kind(device, "b", 40), Kind(device, "c", 50)
    b.touch(manager)
    with a.lease(manager) as held:
        c.touch(manager)
        assert held.closed == 0
    assert device.log == ["load b", "load a", "close b", "load c"]


def test_nothing_is_evicted_when_even_an_empty_pool_would_not_do(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", 40).touch(manager)
    with pytest.raises(InsufficientMemory, match=r"b needs .* of gpu; .* a .*\(idle\)") as caught:
        Kind(device, "b", 101).touch(manager)
    assert device.log == ["load a"]
    assert "can be had now" in caught.value.hint


def test_nothing_is_evicted_when_it_would_not_make_enough_room(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, c = Kind(device, "a", 30), Kind(device, "b", 60), Kind(device, "c", 50)
    a.touch(manager)
    with b.lease(manager), pytest.raises(InsufficientMemory, match="held by the thread"):
        c.touch(manager)
    assert device.log == ["load a", "load b"]
    decision = manager.explain()[-1]
    assert decision.victims is None and decision.replay() is None


def test_what_would_fit_does_fit(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", 30).touch(manager)
    with Kind(device, "b", 60).lease(manager):
        assert manager.room("gpu") == 40
        Kind(device, "c", 40).touch(manager)


def test_other_programs_lower_what_we_may_take(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "a", 40).touch(manager)
    device.by_others["gpu"] = 30
    assert manager.room("gpu") == 70
    with pytest.raises(InsufficientMemory):
        Kind(device, "b", 71).touch(manager)
    assert device.log == ["load a"]
    Kind(device, "c", 40).touch(manager)
    assert device.log == ["load a", "close a", "load c"]


def test_a_budget_below_the_device_holds(device: VirtualDevice) -> None:
    manager = device.manager(budgets={"gpu": 60})
    a, b = Kind(device, "a", 40), Kind(device, "b", 40)
    a.touch(manager)
    b.touch(manager)
    assert device.peak["gpu"] == 40
    with pytest.raises(InsufficientMemory, match="raise the budget of gpu"):
        Kind(device, "c", 61).touch(manager)


def test_headroom_is_left_alone(device: VirtualDevice) -> None:
    manager = device.manager(headroom_bytes=lambda pool, total: total // 10)
    assert manager.room("gpu") == 90
    with pytest.raises(InsufficientMemory):
        Kind(device, "a", 91).touch(manager)
    Kind(device, "b", 90).touch(manager)


def test_a_model_in_two_pools_needs_room_in_both() -> None:
    device = VirtualDevice(gpu=100, ram=100)
    manager = device.manager()
    a, b = Kind(device, "a", gpu=80, ram=10), Kind(device, "b", gpu=10, ram=80)
    c = Kind(device, "c", gpu=50, ram=20)
    a.touch(manager)
    b.touch(manager)
    c.touch(manager)
    assert device.log == ["load a", "load b", "close a", "load c"]


def test_bytes_that_residents_have_taken_are_not_subtracted_twice() -> None:
    pools = Pools(lambda pool: Memory(100, 60), headroom=lambda p, t: 0, own=lambda p: 40)
    assert pools.available("gpu", [Charge(40)]) == 60


def test_bytes_that_residents_are_still_owed_are_kept_for_them() -> None:
    pools = Pools(lambda pool: Memory(100, 70), headroom=lambda p, t: 0, own=lambda p: 10)
    assert pools.available("gpu", [Charge(40)]) == 40  # 70 free, of which 30 are owed


def test_dear_models_stay_when_cheap_ones_can_leave(device: VirtualDevice) -> None:
    for policy, gone in (("cost", "close cheap"), ("lru", "close dear")):
        device = VirtualDevice(gpu=100)
        manager = device.manager(policy=policy)
        Kind(device, "dear", 40, load_s=60).touch(manager)
        Kind(device, "cheap", 40, load_s=1).touch(manager)
        Kind(device, "new", 40).touch(manager)
        assert device.log[2] == gone


def test_a_dear_model_that_nobody_asks_for_leaves_in_the_end(device: VirtualDevice, manager: ModelManager) -> None:
    Kind(device, "dear", 50, load_s=10).touch(manager)
    for turn in range(40):
        Kind(device, f"cheap{turn % 2}", 50).touch(manager)
    assert 4 < device.log.index("close dear") < 40


def test_every_decision_can_be_replayed(device: VirtualDevice, manager: ModelManager) -> None:
    for number in range(30):
        Kind(device, f"m{number % 7}", 15 + 10 * (number % 5), load_s=1 + number % 3).touch(manager)
    decisions = manager.explain()
    assert len(decisions) > 5
    for decision in decisions:
        assert decision.replay() == decision.victims
        freed = decision.free_after["gpu"] - decision.free_before["gpu"]
        assert freed >= decision.shortfall["gpu"]
        assert set(decision.victims or ()) <= set(decision.scores)


def test_a_measured_size_corrects_the_prediction_and_is_remembered(
    device: VirtualDevice, manager: ModelManager
) -> None:
    liar = Kind(device, "liar", 40, real=70)
    liar.touch(manager)
    (row,) = manager.snapshot()
    assert (row.claims, row.measured, row.charged) == ({"gpu": 40}, {"gpu": 70}, {"gpu": 70})
    manager.unload("liar")
    with Kind(device, "a", 35).lease(manager), pytest.raises(InsufficientMemory):
        liar.touch(manager)  # 40 would fit beside 35; 70 does not
    assert liar.loads == 1


def test_a_model_larger_than_predicted_pushes_out_what_no_longer_fits_the_budget(device: VirtualDevice) -> None:
    manager = device.manager(budgets={"gpu": 80})
    Kind(device, "a", 40).touch(manager)
    with Kind(device, "liar", 40, real=60).lease(manager):
        assert device.log == ["load a", "load liar", "close a"]


def test_a_measure_function_has_the_last_word_and_its_failure_leaves_nothing(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a = Kind(device, "a", 40)
    a.touch(manager, measure=lambda model: {"gpu": 44})
    assert manager.snapshot()[0].measured == {"gpu": 44}

    def fail(model: Any) -> dict[str, int]:
        raise LoadError("Tensors are missing.")

    b = Kind(device, "b", 40)
    with pytest.raises(LoadError):
        b.touch(manager, measure=fail)
    assert b.models[0].closed == 1 and not manager.is_loaded("b")


def test_out_of_memory_in_a_load_evicts_what_is_idle_and_tries_once_more(
    device: VirtualDevice, manager: ModelManager
) -> None:
    Kind(device, "idle", 50).touch(manager)
    liar = Kind(device, "liar", 40, real=80)
    liar.touch(manager)
    assert liar.loads == 2 and device.log == ["load idle", "close idle", "load liar"]
    assert manager.snapshot()[0].charged == {"gpu": 80}


def test_out_of_memory_twice_in_a_load_is_a_receipt(device: VirtualDevice, manager: ModelManager) -> None:
    liar = Kind(device, "liar", 40, real=101)
    with pytest.raises(InsufficientMemory, match="ran out again: CUDA out of memory"):
        liar.touch(manager)
    assert liar.loads == 2 and manager.snapshot() == [] and device.used["gpu"] == 0


def test_out_of_memory_in_use_evicts_others_and_runs_once_more(device: VirtualDevice, manager: ModelManager) -> None:
    idle, a = Kind(device, "idle", 50), Kind(device, "a", 40)
    idle.touch(manager)

    def work(model: Any) -> str:
        device.take("gpu", 30)
        device.give("gpu", 30)
        return "done"

    assert manager.call("a", work, **a.plan()) == "done"
    assert device.log == ["load idle", "load a", "close idle"]
    assert manager.snapshot()[0].leases == 0


def test_out_of_memory_twice_in_use_is_a_receipt_from_the_librarys_error(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, calls = Kind(device, "a", 40), []

    def work(model: Any) -> None:
        calls.append(model)
        device.take("gpu", 61)

    with pytest.raises(InsufficientMemory, match=r"a needs 0 KiB of gpu; .*") as caught:
        manager.call("a", work, **a.plan())
    assert len(calls) == 2 and isinstance(caught.value.__cause__, RuntimeError)
    assert manager.is_loaded("a") and manager.snapshot()[0].leases == 0


def test_an_out_of_memory_error_keeps_the_engines_own_hint(device: VirtualDevice, manager: ModelManager) -> None:
    def work(model: Any) -> None:
        raise InsufficientMemory("The context is too long.", hint="Use context 4096.")

    with pytest.raises(InsufficientMemory, match="too long") as caught:
        manager.call("a", work, **Kind(device, "a", 40).plan())
    assert caught.value.hint == "Use context 4096."


def test_the_tensors_of_a_failed_run_are_freed_before_the_second(device: VirtualDevice, manager: ModelManager) -> None:
    class Tensor:
        alive = 0

        def __init__(self) -> None:
            Tensor.alive += 1

        def __del__(self) -> None:
            Tensor.alive -= 1

    seen = []

    def work(model: Any) -> str:
        seen.append(Tensor.alive)
        tensor = Tensor()
        if len(seen) == 1:
            raise MemoryError(id(tensor))
        return "done"

    assert manager.call("a", work, **Kind(device, "a", 40).plan()) == "done"
    assert seen == [0, 0]


def test_other_errors_are_raised_as_they_are_and_run_once(device: VirtualDevice, manager: ModelManager) -> None:
    a, calls = Kind(device, "a", 40), []

    def work(model: Any) -> None:
        calls.append(1)
        raise ValueError("bad input")

    with pytest.raises(ValueError, match="bad input"):
        manager.call("a", work, **a.plan())
    assert calls == [1] and manager.unload("a")


class _Frugal:
    """A model of the virtual device that can work with less."""

    def __init__(self, kind: Kind, spare: int) -> None:
        self.model, self.spare, self.trims = kind.load(), spare, 0

    @property
    def spare_bytes(self) -> dict[str, int]:
        return {"gpu": self.spare}

    def trim(self) -> None:
        self.model.device.give("gpu", self.spare)
        self.model.sizes["gpu"] -= self.spare
        self.spare = 0
        self.trims += 1

    def close(self) -> None:
        self.model.close()


def _frugal(manager: ModelManager, kind: Kind, spare: int) -> _Frugal:
    models: list[_Frugal] = []
    load = lambda: models.append(_Frugal(kind, spare)) or models[-1]  # noqa: E731
    with manager.lease(kind.name, label=kind.name, claims=lambda: kind.claims, load=load):
        return models[0]


def test_what_a_model_can_do_without_goes_before_any_model(device: VirtualDevice, manager: ModelManager) -> None:
    chat = _frugal(manager, Kind(device, "chat", 60), spare=20)
    Kind(device, "b", 65).touch(manager)
    assert chat.trims == 0 and device.log[-2:] == ["close chat", "load b"], "20 bytes are not enough, so none are taken"
    manager.unload_idle()
    chat = _frugal(manager, Kind(device, "chat", 60), spare=20)
    Kind(device, "c", 50).touch(manager)
    assert chat.trims == 1 and device.log[-1] == "load c" and chat.model.closed == 0
    decision = manager.explain()[-1]
    assert decision.trimmed == {"chat": 20} and decision.victims == decision.replay() == ()
    assert (decision.free_before, decision.free_after) == ({"gpu": 40}, {"gpu": 60})
    assert [row.charged for row in manager.snapshot()] == [{"gpu": 40}, {"gpu": 50}]
    assert manager.unload("chat") and device.used["gpu"] == 50


def test_a_model_in_use_or_pinned_gives_nothing_up(device: VirtualDevice, manager: ModelManager) -> None:
    chat = _frugal(manager, Kind(device, "chat", 60), spare=20)
    manager.pin("chat")
    with pytest.raises(InsufficientMemory):
        Kind(device, "b", 50).touch(manager)
    manager.pin("chat", False)
    with manager.lease("chat", label="chat", claims=dict, load=lambda: None), pytest.raises(InsufficientMemory):
        Kind(device, "b", 50).touch(manager)
    assert chat.trims == 0


def test_the_allocators_cache_goes_before_any_model(device: VirtualDevice) -> None:
    cached = 30
    device.used["gpu"] += cached

    def empty_cache(pool: str) -> int:
        nonlocal cached
        got, cached = cached, 0
        device.give(pool, got)
        return got

    manager = device.manager(empty_cache=empty_cache)
    Kind(device, "a", 40).touch(manager)
    assert cached == 30, "there was room"
    Kind(device, "b", 60).touch(manager)
    assert device.log == ["load a", "load b"]
    assert manager.explain()[-1].trimmed == {"allocator cache of gpu": 30}
