"""Downloads as a user starts them: whole processes, the hub's variables, the real client, a server on the loopback."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub_server import FakeHub, serve

TOP = Path(__file__).parents[2]
SCRIPT = TOP / "scripts" / "download_models.py"
CONTENT = random.Random(9).randbytes(2_000_000)
FILES = {"config.json": b'{"model_type": "bark"}', "model.safetensors": CONTENT}
ARGUMENTS = ("some/net", "--modality", "tts", "--yes")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub(dict(FILES))) as running:
        yield running


def environment(hub: FakeHub, models: Path, **more: str) -> dict[str, str]:
    """That of a user whose HF_ENDPOINT is the server, and who has no proxy and no token."""
    rest = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    home = models.parent / "home"
    home.mkdir(exist_ok=True)
    mine = {"HF_ENDPOINT": hub.address, "LOLLMS_LOCAL_MODELS_DIR": str(models), "HF_HOME": str(home)}
    return {**rest, **mine, "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def start(hub: FakeHub, models: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment(hub, models, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run(hub: FakeHub, models: Path, *arguments: str, **more: str) -> tuple[int, str, str]:
    return finish(start(hub, models, *arguments, **more))


def test_the_script_asks_the_hub_that_HF_ENDPOINT_names(hub: FakeHub, tmp_path: Path) -> None:
    code, out, err = run(hub, tmp_path / "models", *ARGUMENTS, "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert row["downloaded"] is True and row["error"] == ""
    assert (tmp_path / "models" / "some--net" / "model.safetensors").read_bytes() == CONTENT


def test_a_gated_model_opens_with_HF_TOKEN_and_says_so_without(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated = True
    code, _, err = run(hub, tmp_path / "models", *ARGUMENTS)
    assert code == 1 and "gated" in err and "HF_TOKEN" in err and "Traceback" not in err
    code, out, err = run(hub, tmp_path / "models", *ARGUMENTS, HF_TOKEN="good")
    assert code == 0, err
    assert "good" not in out and not [p for p in tmp_path.rglob("*.json") if "good" in p.read_text()]


def test_a_dry_run_says_all_before_the_first_byte(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated = True
    models = tmp_path / "models"
    code, out, err = run(hub, models, *ARGUMENTS[:3], "--dry-run")
    assert code == 0, err
    assert "2.0 MB" in out and "mit (gated)" in out and "not tried by us" in out
    assert "about 2.4 MB of" in out and f"fetch into {models}" in out and "are free there" in out
    assert "accept its licence at https://huggingface.co/some/net and set HF_TOKEN first" in out
    assert hub.gets == 0 and not models.exists()
    code, out, err = run(hub, models, *ARGUMENTS[:3], "--dry-run", "--json", HF_TOKEN="good")
    (row,) = json.loads(out)
    assert row["fetch_bytes"] == sum(map(len, FILES.values())) and row["licence"] == "mit" and row["gated"] is True
    assert row["runs"]["verdict"] == "fits" and row["runs"]["memory_bytes"] > len(CONTENT)
    assert hub.gets == 0 and not models.exists()


def test_of_a_set_what_the_hub_does_not_have_does_not_stop_the_others(hub: FakeHub, tmp_path: Path) -> None:
    code, out, err = run(hub, tmp_path / "models", "--set", "cpu", "--dry-run")
    assert code == 1 and "Traceback" not in err
    assert "piper-en-us-joe-medium  63.2 MB" in out and "CC0-1.0" in out
    assert "whisper-base: The hub has no model Systran/faster-whisper-base" in err


def test_what_a_repository_alone_is_for_says_its_page_or_it_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    code, _, err = run(hub, tmp_path / "models", "some/net", "--dry-run")
    assert code == 1 and "--modality" in err
    hub.purpose = "text-to-speech"
    code, out, err = run(hub, tmp_path / "models", "some/net", "--dry-run", "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert (row["modality"], row["engine"], row["fetch_bytes"]) == ("tts", "bark", sum(map(len, FILES.values())))


def test_HF_HUB_OFFLINE_means_that_nothing_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    code, _, err = run(hub, tmp_path / "models", *ARGUMENTS, HF_HUB_OFFLINE="1")
    assert code == 1 and "HF_HUB_OFFLINE" in err and "Traceback" not in err
    assert hub.requests == 0


def test_two_processes_fetch_a_model_once_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    hub.piece_bytes, hub.piece_s = 100_000, 0.05  # a second, so that they do meet
    both = [start(hub, tmp_path / "models", *ARGUMENTS, "--json") for _ in range(2)]
    for code, out, err in [finish(process) for process in both]:
        assert code == 0, err
        assert json.loads(out)[0]["downloaded"] is True
    assert hub.gets == len(FILES)


def test_ctrl_c_in_the_middle_of_a_file_leaves_nothing_that_looks_installed(hub: FakeHub, tmp_path: Path) -> None:
    if os.name == "nt":
        return
    models = tmp_path / "models"
    hub.silences = [len(CONTENT) * 2, 1_000_000]
    process = start(hub, models, *ARGUMENTS, "--quiet")
    part = _wait_for_part(models, process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130 and "Traceback" not in err, err
    assert not (models / "some--net").exists()
    assert _list(hub, models) == []
    hub.silences = []
    code, _, err = run(hub, models, *ARGUMENTS)
    assert code == 0, err
    assert (models / "some--net" / "model.safetensors").read_bytes() == CONTENT
    assert not part.exists() and hub.ranges, "it began again from the start"


def _wait_for_part(models: Path, process: subprocess.Popen[str]) -> Path:
    """Until half of the large file is here; the server is silent then, so it stays so."""
    while process.poll() is None:
        for part in models.rglob(".parts/*"):
            if part.is_file() and part.stat().st_size == 1_000_000:
                return part
    raise AssertionError(process.communicate())


def _list(hub: FakeHub, models: Path) -> list[Any]:
    code = "import sys; from lollms_local.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "models", "list", "--downloaded", "--json"],
        env=environment(hub, models),
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def test_a_server_that_stalls_costs_a_try_and_not_the_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.silences = [len(CONTENT) * 2, 1_000_000]
    code, _, err = run(hub, tmp_path / "models", *ARGUMENTS, "--quiet", HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert code == 0, err
    assert hub.ranges == ["bytes=1000000-"]
    assert (tmp_path / "models" / "some--net" / "model.safetensors").read_bytes() == CONTENT
