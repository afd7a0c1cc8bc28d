"""What a process has in memory is seen by others, and by nobody once it has ended."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lollms_local import cli
from lollms_local.board import Board, Entry
from lollms_local.catalog import Catalog
from lollms_local.cli import system
from lollms_local.manager import ModelManager
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.virtual_device import Kind, VirtualDevice


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    runtime = Runtime(Settings(models_dir=str(tmp_path)), catalog=Catalog([]))
    before = set_runtime(runtime)
    yield tmp_path / ".running"
    set_runtime(before)
    runtime.manager.close()


def lease(manager: ModelManager, label: str = "a-model") -> Any:
    return manager.lease(label, label=label, claims=lambda: {"ram": 3_000_000}, load=io.BytesIO)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


def test_models_are_posted_when_they_come_and_gone_when_they_leave(folder: Path) -> None:
    board = Board(folder)
    manager = ModelManager(board=board, timer=False)
    with lease(manager):
        (posting,) = board.read()
    assert posting.pid == os.getpid()
    assert posting.entries == (Entry("a-model", {"ram": 3_000_000}, {}, posting.entries[0].load_s, 1, False),)
    with lease(manager, "b"):
        assert [entry.model for entry in board.read()[0].entries] == ["a-model", "b"]
    manager.close()
    assert board.read() == [] and list(folder.iterdir()) == []


def test_a_process_that_ended_and_a_file_that_is_not_ours_are_removed(folder: Path) -> None:
    folder.mkdir()
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    ended = int(child.stdout)
    posting = {"pid": ended, "started": 1.0, "entries": []}
    (folder / f"{ended}.json").write_text(json.dumps(posting))
    (folder / "1.json").write_text(json.dumps({**posting, "pid": os.getpid()}))  # an earlier process of our number
    for number, text in enumerate(("", "[]", "null", '{"pid": 1}', "[" * 5000, '{"entries": [{"model": 1}]}')):
        (folder / f"x{number}.json").write_text(text)
    assert Board(folder).read() == [] and list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    manager = ModelManager(board=Board(tmp_path / "file" / "below"), timer=False)
    with lease(manager):
        pass
    assert manager.unload("a-model")


def test_ps_and_top_show_what_a_living_program_has_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = ModelManager(board=Board(folder), timer=False)
    with lease(manager):
        assert call("ps", "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["model"], row["pid"], row["charged"], row["uses"]) == (
            "a-model",
            os.getpid(),
            {"ram": 3_000_000},
            1,
        )
        text = io.StringIO()
        Console(width=120, file=text).print(system.frame())
        assert "a-model" in text.getvalue() and "ram 3.0 MB" in text.getvalue() and "free" in text.getvalue()
        monkeypatch.setattr(system.time, "sleep", _interrupted)
        for command in (("top",), ("ps", "--watch")):
            assert call(*command) == 0
            assert "a-model" in capsys.readouterr().out
    manager.close()
    assert call("ps") == 0 and "No model" in capsys.readouterr().out


def test_ps_says_what_is_parked_and_what_did_not_give_its_memory_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = VirtualDevice(gpu=100, ram=100)
    manager = device.manager(board=Board(folder))
    leaky, waits = Kind(device, "leaky", gpu=40, leak=0.5), Kind(device, "waits", gpu=50, parks=True)
    leaky.touch(manager)
    assert manager.unload("leaky")
    waits.touch(manager)
    leaky.touch(manager)
    assert call("ps", "--json") == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["waits"]["state"], rows["waits"]["charged"]) == ("parked", {"ram": 50})
    assert (rows["leaky"]["state"], rows["leaky"]["returned"]) == ("ready", 0.5)
    assert call("ps") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "waits (parked)" in text and "leaky (gave back only 50% when it last left)" in text
    manager.close()


def _interrupted(seconds: float) -> None:
    raise KeyboardInterrupt
