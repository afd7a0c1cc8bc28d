"""What was measured once is planned with from then on."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lollms_local.errors import InsufficientMemory
from lollms_local.ledger import Ledger
from tests.virtual_device import Kind, VirtualDevice


def test_a_measured_size_is_planned_with_in_the_next_process(tmp_path: Path) -> None:
    for run in range(2):
        device = VirtualDevice(gpu=100)
        manager = device.manager(ledger=Ledger(tmp_path / "memory.json"))
        liar = Kind(device, "liar", 40, real=70)
        if run == 0:
            liar.touch(manager)
        else:
            with Kind(device, "a", 35).lease(manager), pytest.raises(InsufficientMemory, match="liar needs"):
                liar.touch(manager)
            assert liar.loads == 0


def test_a_figure_holds_for_its_prediction_and_context_only(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    Ledger(file, "version 1").note("a", {"gpu": 10}, {"gpu": 12})
    assert Ledger(file, "version 1").measured("a", {"gpu": 10}) == {"gpu": 12}
    assert Ledger(file, "version 1").measured("a", {"gpu": 11}) == {}
    assert Ledger(file, "version 1").measured("b", {"gpu": 10}) == {}
    assert Ledger(file, "version 2").measured("a", {"gpu": 10}) == {}


def test_the_latest_measurement_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory.json")
    ledger.note("a", {"gpu": 10}, {"gpu": 99})
    ledger.note("a", {"gpu": 10}, {"gpu": 12})
    assert Ledger(tmp_path / "memory.json").measured("a", {"gpu": 10}) == {"gpu": 12}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"measured_bytes": 3}', '{"measured_bytes": {"x": {"gpu": "many"}}}', "\x00", "[" * 5000]
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    file = tmp_path / "memory.json"
    file.write_text(text)
    ledger = Ledger(file)
    assert ledger.measured("a", {"gpu": 10}) == {}
    ledger.note("a", {"gpu": 10}, {"gpu": 12})
    assert Ledger(file).measured("a", {"gpu": 10}) == {"gpu": 12}
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "absent" / "memory.json")
    ledger.note("a", {"gpu": 10}, {"gpu": 12})
    assert ledger.measured("a", {"gpu": 10}) == {"gpu": 12}


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    ledger = Ledger(file)
    for number in range(520):
        ledger.note(number, {"gpu": 1}, {"gpu": 2})
    assert ledger.measured(0, {"gpu": 1}) == {} and ledger.measured(519, {"gpu": 1}) == {"gpu": 2}
    assert file.stat().st_size < 60_000 and stat.S_ISREG(file.stat().st_mode)
