"""What a job takes at its height, on a virtual device: watched, kept, planned with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lollms_local.ledger import Ledger
from lollms_local.manager import ModelManager, Terms
from lollms_local.meter import Reading
from tests.virtual_device import Actor, Kind, VirtualDevice

MANY = Terms(concurrency=0)


class Watched(VirtualDevice):
    """Tells a job when its height has been looked at, so that no test has to wait for a clock."""

    def __init__(self, **total: int) -> None:
        super().__init__(**total)
        self.looks = threading.Semaphore(0)

    def held(self, pool: str) -> int:
        count = self.used[pool] + self.by_others[pool]
        self.looks.release()
        return count

    @contextmanager
    def working(self, count: int, pool: str = "gpu") -> Iterator[None]:
        """While it lasts a job takes `count` more; it ends when somebody has looked, or never will."""
        self.take(pool, count)
        while self.looks.acquire(blocking=False):
            pass
        if any(thread.name == "lollms-local-meter" for thread in threading.enumerate()):
            assert self.looks.acquire(timeout=30) and self.looks.acquire(timeout=30)
        try:
            yield
        finally:
            self.give(pool, count)


@pytest.fixture
def device() -> Watched:
    return Watched(gpu=100, ram=100)


@pytest.fixture
def manager(device: Watched) -> ModelManager:
    return device.manager(held=device.held, own=lambda pool: device.used[pool])


def work(manager: ModelManager, kind: Kind, extra: int, shape: str | None = "big", pool: str = "gpu") -> None:
    with kind.lease(manager, shape=shape), kind.device.working(extra, pool):  # type: ignore[attr-defined]
        pass


def peak(manager: ModelManager, label: str = "a") -> Any:
    return next(dict(row.peak) for row in manager.snapshot() if row.label == label)


def charged(manager: ModelManager, label: str = "a") -> Any:
    return next(dict(row.charged) for row in manager.snapshot() if row.label == label)


def test_the_height_of_a_job_is_seen_and_nobody_is_charged_for_it(device: Watched, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    work(manager, a, 25)
    assert peak(manager) == {"gpu": 65}
    with a.lease(manager, shape="big"), Kind(device, "b", 50).lease(manager):
        assert charged(manager) == {"gpu": 40}, "a promise to one would be a refusal to another"


def test_what_fits_into_the_prediction_changes_no_charge(device: Watched, manager: ModelManager) -> None:
    work(manager, Kind(device, "a", gpu=40, real=20), 10)
    assert peak(manager) == {"gpu": 30} and charged(manager) == {"gpu": 40}


def test_the_next_process_makes_room_for_it_before_the_load(tmp_path: Path) -> None:
    for run in range(2):
        device = Watched(gpu=100)
        manager = device.manager(held=device.held, ledger=Ledger(tmp_path / "memory.json"))
        a, b = Kind(device, "a", 40), Kind(device, "b", 50)
        if run == 0:
            work(manager, a, 25)
            continue
        b.touch(manager)
        with a.lease(manager, shape="small"):
            assert device.log == ["load b", "load a"]  # of such work nothing is known
        manager.unload("a")
        with a.lease(manager, shape="big"):
            assert device.log[-2:] == ["close b", "load a"]


def test_a_loaded_model_gets_room_before_larger_work_than_it_was_loaded_for(
    device: Watched, manager: ModelManager
) -> None:
    a, b = Kind(device, "a", 40), Kind(device, "b", 50)
    work(manager, a, 25)
    manager.unload("a")
    b.touch(manager)
    a.touch(manager, shape="small")
    assert [r.label for r in manager.snapshot()] == ["b", "a"]
    with a.lease(manager, shape="big"):
        assert [r.label for r in manager.snapshot()] == ["a"] and a.loads == 2


def knows(device: VirtualDevice, label: str = "a", predicted: int = 40, peak: int = 90, **more: Any) -> ModelManager:
    """A manager whose ledger has seen big work of one model."""
    ledger = Ledger()
    ledger.note_peak(label, {"gpu": predicted}, "big", {"gpu": peak})
    return device.manager(ledger=ledger, own=lambda pool: device.used[pool], **more)


def test_what_was_learned_never_becomes_a_refusal_or_a_wait(device: Watched) -> None:
    """The model fits without it: beside what is pinned, held by the same thread, or in use by another one."""
    manager = knows(device)
    a, b = Kind(device, "a", 40), Kind(device, "b", 30)
    b.touch(manager)
    manager.pin("b")
    a.touch(manager, shape="big")
    manager.unload("a")
    manager.pin("b", False)
    with b.lease(manager):
        a.touch(manager, shape="big")
        manager.unload("a")
        actor = Actor()
        actor.start(lambda: a.touch(manager, shape="big"))
        assert actor.join() == [None]
    assert "close b" not in device.log
    manager.unload("a")
    device.by_others["gpu"] = 55
    a.touch(manager, shape="big")


def test_a_neighbour_that_gives_back_less_than_it_took_turns_no_wish_into_a_refusal(device: Watched) -> None:
    manager = knows(device)
    Kind(device, "b", 80, leak=0.2).touch(manager)
    Kind(device, "a", 40).touch(manager, shape="big")
    assert [row.label for row in manager.snapshot()] == ["a"]


def test_nothing_leaves_for_a_wish_that_cannot_be_met(device: Watched) -> None:
    manager = knows(device)
    a, b, c = Kind(device, "a", 40), Kind(device, "b", 10), Kind(device, "c", 50)
    a.touch(manager)
    b.touch(manager)
    with c.lease(manager), a.lease(manager, shape="big"):
        assert "close b" not in device.log
    manager.unload("a")
    with c.lease(manager), a.lease(manager, shape="big"):
        assert "close b" not in device.log


def test_at_the_end_of_such_work_nobody_leaves(device: Watched) -> None:
    manager = device.manager(budgets={"gpu": 90}, held=device.held, own=lambda pool: device.used[pool])
    a, b = Kind(device, "a", 40), Kind(device, "b", 50)
    b.touch(manager)
    a.touch(manager)
    device.log.clear()
    work(manager, a, 10)
    assert device.log == [] and peak(manager) == {"gpu": 50}
    with a.lease(manager, shape="big"):
        assert device.log == ["close b"], "but before the next"


def test_room_for_known_work_is_made_by_a_decision_that_can_be_replayed(device: Watched) -> None:
    manager = knows(device)
    a, b = Kind(device, "a", 40), Kind(device, "b", 50, parks=True)
    a.touch(manager)
    b.touch(manager)
    with a.lease(manager, shape="big"):
        decision = manager.explain()[-1]
        assert (decision.wanted, decision.victims, decision.parked) == ("a", ("b",), ("b",))
        assert decision.shortfall == {"gpu": 40} and decision.replay() == ("b",)


class Caching(Watched):
    """Keeps what a job gave back, as torch does, until its cache is emptied."""

    def __init__(self, **total: int) -> None:
        super().__init__(**total)
        self.cached = 0

    def keep(self, count: int) -> None:
        """A job took so much and gave it back to the cache."""
        more = max(0, count - self.cached)
        self.take("gpu", more)
        self.cached += more

    def empty_cache(self, pool: str) -> int:
        found, self.cached = self.cached, 0
        self.give(pool, found)
        return found


def test_what_an_allocator_kept_of_one_job_does_not_hide_the_height_of_the_next(tmp_path: Path) -> None:
    device, ledger = Caching(gpu=100), Ledger(tmp_path / "memory.json")
    manager = device.manager(held=device.held, ledger=ledger, empty_cache=device.empty_cache)
    a = Kind(device, "a", 40)
    for _ in range(3):
        with a.lease(manager, shape="big"):
            device.keep(25)
    assert Ledger(tmp_path / "memory.json").peaks("a", {"gpu": 40}) == {"big": {"gpu": 65}}


def test_emptying_a_cache_comes_before_sending_a_neighbour_away() -> None:
    for unloads in (False, True):
        device = Caching(gpu=100)
        manager = device.manager(held=device.held, own=lambda pool: device.used[pool], empty_cache=device.empty_cache)  # noqa: B023
        a, b = Kind(device, "a", 40), Kind(device, "b", 45)
        with a.lease(manager, shape="big"):
            device.keep(10)
        if unloads:
            manager.unload("a")
        b.touch(manager)
        for _ in range(3):
            with a.lease(manager, shape="big"):
                device.keep(10)
        assert "close b" not in device.log


def test_a_load_that_was_not_alone_teaches_nothing(device: Watched) -> None:
    """What others allocate meanwhile would count as the model's, in this measurement and under every later peak."""
    ledger = Ledger()
    manager = device.manager(held=device.held, ledger=ledger)
    b = Kind(device, "b", 20, terms=MANY)
    a = Kind(device, "a", gpu=20, on_load=lambda: device.take("gpu", 30))
    with b.lease(manager):
        Actor().start(lambda: a.touch(manager)).join(30)
    work(manager, a, 5)
    assert ledger.measured("a", {"gpu": 20}) == {} and ledger.peaks("a", {"gpu": 20}) == {}


def test_a_job_keeps_its_result_when_it_cannot_be_watched(device: Watched) -> None:
    asked: list[str] = []

    def held(pool: str) -> int:
        asked.append(pool)
        if len(asked) != 1:
            raise OSError("the driver is busy")
        return 0

    manager = device.manager(held=held)
    a = Kind(device, "a", 40)
    for _ in range(2):
        assert manager.call("a", lambda model: "result", **a.plan(shape="big")) == "result"
    assert len(asked) >= 2 and manager.snapshot()[0].leases == 0 and peak(manager) == {}


def test_the_middle_of_the_latest_three_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory.json")
    seen = [ledger.note_peak("a", {"gpu": 1}, "big", {"gpu": n})["gpu"] for n in (50, 10, 40, 30, 20)]
    assert seen == [50, 10, 40, 30, 30]
    assert Ledger(tmp_path / "memory.json").peaks("a", {"gpu": 1}) == {"big": {"gpu": 30}}
    assert Ledger(tmp_path / "memory.json", "another card").peaks("a", {"gpu": 1}) == {}


@pytest.mark.parametrize("text", ['{"peak_bytes": 3}', '{"peak_bytes": {"x": {"s": [{"gpu": "many"}]}}}'])
def test_damaged_peaks_count_as_none_and_are_replaced(tmp_path: Path, text: str) -> None:
    file = tmp_path / "memory.json"
    file.write_text(text)
    assert Ledger(file).peaks("a", {"gpu": 1}) == {}
    Ledger(file).note_peak("a", {"gpu": 1}, "big", {"gpu": 9})
    assert Ledger(file).peaks("a", {"gpu": 1}) == {"big": {"gpu": 9}}


def test_a_model_has_no_more_shapes_than_are_kept(device: Watched, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory.json")
    manager = device.manager(held=device.held, ledger=ledger)
    a = Kind(device, "a", 1)
    for number in range(40):
        with a.lease(manager, shape=str(number)):
            pass
    assert len(ledger.peaks("a", {"gpu": 1})) == 32 and "39" in ledger.peaks("a", {"gpu": 1})
    slot = manager._table.slots["a"]
    assert len(slot.learned) == 32 and len(slot.readings) == 32


def test_two_processes_keep_each_other_s_figures(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path / "memory.json"), Ledger(tmp_path / "memory.json")
    assert one.measured("x", {"gpu": 1}) == two.measured("x", {"gpu": 1}) == {}  # both have read the file
    one.note("a", {"gpu": 1}, {"gpu": 2})
    two.note_peak("b", {"gpu": 1}, "big", {"gpu": 3})
    three = Ledger(tmp_path / "memory.json")
    assert three.measured("a", {"gpu": 1}) == {"gpu": 2} and three.peaks("b", {"gpu": 1}) == {"big": {"gpu": 3}}


def test_one_damaged_figure_costs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    Ledger(file).note("a", {"gpu": 1}, {"gpu": 2})
    file.write_text(file.read_text().replace('{"measured_bytes": {', '{"measured_bytes": {"x": {"gpu": 1e999}, '))
    assert Ledger(file).measured("a", {"gpu": 1}) == {"gpu": 2}


def test_a_job_that_was_not_alone_teaches_nothing(device: Watched, manager: ModelManager) -> None:
    """Another job before it, beside it, or a model that leaves meanwhile: whose bytes they are cannot be told."""
    a, b = Kind(device, "a", 40, terms=MANY), Kind(device, "b", 20, terms=MANY)
    a.touch(manager)
    with b.lease(manager):
        work(manager, a, 20)
    assert peak(manager) == {}

    def disturbed(by: Callable[[], object]) -> None:
        with a.lease(manager, shape="big"), device.working(20):
            actor = Actor()
            actor.start(by)
            actor.join()

    disturbed(lambda: b.touch(manager))
    disturbed(lambda: manager.unload("b"))
    assert peak(manager) == {}
    work(manager, a, 20)
    assert peak(manager) == {"gpu": 60}


def test_a_job_that_failed_or_was_no_work_teaches_nothing(device: Watched, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    with pytest.raises(ValueError, match="half way"), a.lease(manager, shape="big"), device.working(20):
        raise ValueError("half way")
    work(manager, a, 20, shape=None)
    assert peak(manager) == {}


def test_after_three_jobs_of_a_shape_nobody_looks_any_more(device: Watched, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    for _ in range(3):
        work(manager, a, 10)
    while device.looks.acquire(blocking=False):
        pass
    with a.lease(manager, shape="big"):
        assert not any(thread.name == "lollms-local-meter" for thread in threading.enumerate())
    assert not device.looks.acquire(blocking=False)
    with a.lease(manager, shape="other"):
        assert any(thread.name == "lollms-local-meter" for thread in threading.enumerate())


def test_in_ram_only_what_comes_after_the_library_s_own_part_counts(device: Watched, manager: ModelManager) -> None:
    """The first load of a library brings its code and its thread pools; those stay, and belong to no model."""
    first, second = Kind(device, "first", ram=30), Kind(device, "second", ram=20)
    first.terms = second.terms = Terms(library="torch")
    first.on_load = lambda: device.take("ram", 15)
    work(manager, first, 5, pool="ram")
    assert peak(manager, "first") == {}
    manager.unload("first")
    work(manager, second, 7, pool="ram")
    assert peak(manager, "second") == {"ram": 27}


def test_a_reading_is_the_most_that_came_on_top() -> None:
    held, looked = {"ram": 10}, threading.Semaphore(0)

    def look(pool: str) -> int:
        looked.release()
        return held[pool]

    reading = Reading(look, ["ram"], every_s=0.001)
    held["ram"] = 50
    while looked.acquire(blocking=False):
        pass
    assert looked.acquire(timeout=30) and looked.acquire(timeout=30)
    held["ram"] = 20
    assert reading.stop() == {"ram": 40}
