"""What a job takes at its height, on a virtual device: watched, kept, planned with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lollms_local.errors import InsufficientMemory
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


def test_the_height_of_a_job_is_seen_and_charged_from_then_on(device: Watched, manager: ModelManager) -> None:
    work(manager, Kind(device, "a", 40), 25)
    assert peak(manager) == {"gpu": 65} and charged(manager) == {"gpu": 65}


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


def test_what_was_learned_never_becomes_a_refusal(device: Watched, manager: ModelManager) -> None:
    a = Kind(device, "a", 40)
    work(manager, a, 55)
    manager.unload("a")
    device.by_others["gpu"] = 30
    with a.lease(manager, shape="big"):
        assert charged(manager) == {"gpu": 70}
    with pytest.raises(InsufficientMemory):
        Kind(device, "b", 71).touch(manager)


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


def test_a_model_has_no_more_shapes_than_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory.json")
    for number in range(40):
        ledger.note_peak("a", {"gpu": 1}, str(number), {"gpu": number})
    assert len(ledger.peaks("a", {"gpu": 1})) == 32 and "39" in ledger.peaks("a", {"gpu": 1})


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
