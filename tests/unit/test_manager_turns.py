"""The manager on a virtual device: turns, waiting, torch, the random generators."""

from __future__ import annotations

import threading

import pytest

from lollms_local.errors import ModelBusy
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


def test_one_caller_at_a_time_where_the_engine_holds_state(device: VirtualDevice, manager: ModelManager) -> None:
    a, inside, leave = Kind(device, "a", 10), threading.Event(), threading.Event()

    def hold() -> None:
        with a.lease(manager) as model, model:
            inside.set()
            assert leave.wait(30)

    def use() -> None:
        with a.lease(manager) as model, model:
            pass

    actor = Actor()
    actor.start(hold)
    assert inside.wait(30)
    actor.start(use)
    wait_until_queued(manager, 1, "turn")
    leave.set()
    assert actor.join() == [None, None]
    assert a.models[0].most_users == 1


def test_several_callers_where_the_engine_allows_them(device: VirtualDevice, manager: ModelManager) -> None:
    for limit, expected in ((0, 3), (2, 2)):
        a = Kind(device, f"a{limit}", 10, terms=Terms(concurrency=limit))
        together, actor = threading.Barrier(expected), Actor()

        def use(kind: Kind = a, barrier: threading.Barrier = together) -> None:
            with kind.lease(manager) as model, model:
                barrier.wait(30)

        for _ in range(expected):
            actor.start(use)
        assert actor.join() == [None] * expected
        assert a.models[0].most_users == expected


def test_turns_come_in_the_order_of_asking(device: VirtualDevice, manager: ModelManager) -> None:
    a, order, actor = Kind(device, "a", 10), [], Actor()

    def use(number: int) -> None:
        with a.lease(manager):
            order.append(number)

    with a.lease(manager):
        for number in range(6):
            actor.start(lambda number=number: use(number))
            wait_until_queued(manager, number + 1, "turn")
    actor.join()
    assert order == list(range(6))


def test_a_model_in_use_too_long_is_busy_and_says_by_whom(device: VirtualDevice, manager: ModelManager) -> None:
    a, actor = Kind(device, "a", 10), Actor()
    with a.lease(manager, holder="local_llm"):
        actor.start(lambda: a.touch(manager, wait_s=0.0))
        actor.start(lambda: a.touch(manager, wait_s=0.05))
        for result in actor.join():
            assert isinstance(result, ModelBusy) and "in use by local_llm" in str(result)
    a.touch(manager)


def test_room_held_by_others_is_waited_for(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, actor = Kind(device, "a", 60), Kind(device, "b", 60), Actor()
    with a.lease(manager):
        actor.start(lambda: b.touch(manager))
        wait_until_queued(manager, 1, "room")
        assert device.log == ["load a"]
    assert actor.join() == [None]
    assert device.log == ["load a", "close a", "load b"]


def test_room_that_does_not_come_is_busy_with_the_receipt(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, actor = Kind(device, "a", 60), Kind(device, "b", 60), Actor()
    with a.lease(manager, holder="local_tti"):
        actor.start(lambda: b.touch(manager, wait_s=0.02))
        (result,) = actor.join()
    assert isinstance(result, ModelBusy) and "in use by local_tti" in str(result)
    assert device.log == ["load a"]


def test_a_waiting_load_is_not_starved_by_newer_users_of_its_victim(
    device: VirtualDevice, manager: ModelManager
) -> None:
    a, b, actor = Kind(device, "a", 60, terms=MANY), Kind(device, "b", 60), Actor()
    order = []

    def use(kind: Kind) -> None:
        with kind.lease(manager):
            order.append(kind.name)

    with a.lease(manager):
        actor.start(lambda: use(b))
        wait_until_queued(manager, 1, "room")
        actor.start(lambda: use(a))
        wait_until_queued(manager, 2, "room")
    assert actor.join() == [None, None]
    assert order == ["b", "a"]


def test_a_small_load_passes_a_large_one_that_waits(device: VirtualDevice, manager: ModelManager) -> None:
    a, large, small, actor = Kind(device, "a", 60), Kind(device, "large", 80), Kind(device, "small", 20), Actor()
    with a.lease(manager):
        actor.start(lambda: large.touch(manager))
        wait_until_queued(manager, 1, "room")
        other = Actor()
        other.start(lambda: small.touch(manager))
        assert other.join() == [None]
    assert actor.join() == [None]


def test_a_load_does_not_take_what_an_earlier_one_waits_for(device: VirtualDevice, manager: ModelManager) -> None:
    a, large, greedy, actor = Kind(device, "a", 60), Kind(device, "large", 80), Kind(device, "greedy", 40), Actor()
    order = []

    def use(kind: Kind) -> None:
        with kind.lease(manager):
            order.append(kind.name)

    with a.lease(manager):
        actor.start(lambda: use(large))
        wait_until_queued(manager, 1, "room")
        actor.start(lambda: use(greedy))
        wait_until_queued(manager, 2, "room")
    assert actor.join() == [None, None]
    assert order == ["large", "greedy"]


def test_a_load_does_not_evict_what_an_earlier_one_will_need_gone(device: VirtualDevice, manager: ModelManager) -> None:
    a, idle, large = Kind(device, "a", 50), Kind(device, "idle", 40), Kind(device, "large", 80)
    greedy, actor, order = Kind(device, "greedy", 40), Actor(), []

    def use(kind: Kind) -> None:
        with kind.lease(manager):
            order.append(kind.name)

    idle.touch(manager)
    with a.lease(manager):
        actor.start(lambda: use(large))
        wait_until_queued(manager, 1, "room")
        actor.start(lambda: use(greedy))
        wait_until_queued(manager, 2, "room")
        assert manager.is_loaded("idle")
    assert actor.join() == [None, None]
    assert order == ["large", "greedy"]


def test_memory_that_is_being_freed_is_waited_for(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, closing, gate, actor = (
        Kind(device, "a", 60),
        Kind(device, "b", 60),
        threading.Event(),
        threading.Event(),
        Actor(),
    )

    def slow_close() -> None:
        closing.set()
        assert gate.wait(30)

    with a.lease(manager) as model:
        model.on_close = slow_close
    actor.start(lambda: manager.unload("a"))
    assert closing.wait(30)
    actor.start(lambda: b.touch(manager))
    wait_until_queued(manager, 1, "load")
    gate.set()
    assert sorted(map(str, actor.join())) == ["None", "True"]


def test_the_same_thread_may_lease_the_same_model_again(device: VirtualDevice, manager: ModelManager) -> None:
    a = Kind(device, "a", 40, terms=Terms(uses_torch=True, shares_rng=True))
    with a.lease(manager) as outer, a.lease(manager) as inner:
        assert inner is outer
        assert manager.snapshot()[0].leases == 2
    assert manager.unload("a")


def test_crossed_leases_give_an_error_and_no_deadlock(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, both = Kind(device, "a", 10), Kind(device, "b", 10), threading.Barrier(2)

    def cross(mine: Kind, other: Kind) -> str:
        with mine.lease(manager):
            both.wait(30)
            try:
                other.touch(manager)
            except ModelBusy as exc:
                both.wait(30)
                return str(exc)
        raise AssertionError("got a model that another thread holds")

    actor = Actor()
    actor.start(lambda: cross(a, b))
    actor.start(lambda: cross(b, a))
    results = actor.join()
    assert all("already" in text for text in results)


def test_a_thread_with_a_lease_gets_room_at_once_or_an_error(device: VirtualDevice, manager: ModelManager) -> None:
    a, b, c = Kind(device, "a", 50), Kind(device, "b", 40), Kind(device, "c", 50)
    inside, leave, actor = threading.Event(), threading.Event(), Actor()

    def hold() -> None:
        with b.lease(manager):
            inside.set()
            assert leave.wait(30)

    actor.start(hold)
    assert inside.wait(30)
    with a.lease(manager), pytest.raises(ModelBusy, match="does not wait"):
        c.touch(manager)
    leave.set()
    actor.join()
    with a.lease(manager):
        c.touch(manager)


def test_a_lease_may_end_in_another_thread(device: VirtualDevice, manager: ModelManager) -> None:
    a, actor = Kind(device, "a", 40), Actor()
    lease = a.lease(manager)
    lease.__enter__()
    actor.start(lambda: lease.__exit__(None, None, None))
    actor.join()
    assert manager.unload("a")
    with a.lease(manager), Kind(device, "b", 40).lease(manager):
        pass


def test_a_torch_load_waits_for_torch_generation_and_others_keep_serving(
    device: VirtualDevice, manager: ModelManager
) -> None:
    running, new = Kind(device, "t1", 10, terms=TORCH), Kind(device, "t2", 10, terms=TORCH)
    native = Kind(device, "n", 10)
    actor, events = Actor(), []
    with running.lease(manager):
        actor.start(lambda: (new.touch(manager), events.append("t2 loaded")))
        wait_until_queued(manager, 1, "torch")
        other = Actor()
        other.start(lambda: (native.touch(manager), events.append("n served")))
        other.join()
        assert events == ["n served"]
    actor.join()
    assert events == ["n served", "t2 loaded"]


def test_torch_generation_waits_for_a_torch_load_and_others_keep_serving(
    device: VirtualDevice, manager: ModelManager
) -> None:
    loading, gate = threading.Event(), threading.Event()

    def wait_in_load() -> None:
        loading.set()
        assert gate.wait(30)

    running, native = Kind(device, "t1", 10, terms=TORCH), Kind(device, "n", 10)
    new = Kind(device, "t2", 10, terms=TORCH, on_load=wait_in_load)
    running.touch(manager)
    native.touch(manager)
    actor = Actor()
    actor.start(lambda: new.touch(manager))
    assert loading.wait(30)
    actor.start(lambda: running.touch(manager))
    wait_until_queued(manager, 1, "load")
    native.touch(manager)
    gate.set()
    assert actor.join() == [None, None]


def test_new_torch_users_do_not_starve_a_torch_load(device: VirtualDevice, manager: ModelManager) -> None:
    running, new, actor = Kind(device, "t1", 10, terms=TORCH), Kind(device, "t2", 10, terms=TORCH), Actor()
    order = []

    def use(kind: Kind) -> None:
        with kind.lease(manager):
            order.append(kind.name)

    with running.lease(manager):
        actor.start(lambda: use(new))
        wait_until_queued(manager, 1, "torch")
        actor.start(lambda: use(running))
        wait_until_queued(manager, 2, "torch")
    actor.join()
    assert order == ["t2", "t1"]


def test_a_thread_with_a_torch_lease_may_load_torch_if_it_is_the_only_user(
    device: VirtualDevice, manager: ModelManager
) -> None:
    first, second, third = (Kind(device, f"t{i}", 10, terms=TORCH) for i in range(3))
    inside, leave, actor = threading.Event(), threading.Event(), Actor()

    def hold() -> None:
        with first.lease(manager):
            inside.set()
            assert leave.wait(30)

    with first.lease(manager):
        second.touch(manager)
        actor.start(hold)
        assert inside.wait(30)
        with pytest.raises(ModelBusy, match="torch"):
            third.touch(manager)
        leave.set()
        actor.join()
        third.touch(manager)


def test_models_that_share_the_random_generator_take_turns(device: VirtualDevice, manager: ModelManager) -> None:
    rng = Terms(concurrency=0, shares_rng=True)
    bark, music, free = Kind(device, "bark", 10, terms=rng), Kind(device, "music", 10, terms=rng), Kind(device, "n", 10)
    music.touch(manager)
    actor = Actor()
    with bark.lease(manager):
        actor.start(lambda: music.touch(manager))
        wait_until_queued(manager, 1, "rng")
        other = Actor()
        other.start(lambda: free.touch(manager))
        assert other.join() == [None]
    assert actor.join() == [None]
