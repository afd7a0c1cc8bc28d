"""`lollms-local video`, as typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lollms_local.cli import main
from lollms_local.media import decode_video
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny import video as tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.ltx(), tmp_path_factory.mktemp("models") / "tiny-ltx")


@pytest.fixture(autouse=True)
def runtime(model: Path) -> Iterator[Runtime]:
    fresh = Runtime(Settings(models_dir=str(model.parent)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["video", *map(str, arguments)])
    return int(ended.value.code or 0)


SMALL = ("--model", "tiny-ltx", "--size", "32x32", "--steps", 2, "--seed", 5)


def test_a_film_is_written_and_the_seed_printed(tmp_path: Path, capsys: Any) -> None:
    assert run("a heron", "-o", tmp_path / "heron.mp4", *SMALL, "--duration", 1, "--fps", 10) == 0
    printed = capsys.readouterr()
    assert "seed 5" in printed.out and "10 frames" in printed.out and "heron.mp4" in printed.out
    assert "first 10 are kept" in printed.err
    frames, fps, _ = decode_video(tmp_path / "heron.mp4")
    assert frames.shape == (10, 32, 32, 3) and fps == 10


def test_the_files_name_says_its_format_and_json_says_all(tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "first.png"
    Image.effect_mandelbrot((40, 40), (-2, -1.5, 1, 1.5), 60).save(picture)
    film = tmp_path / "heron.gif"
    assert run("a heron", "-o", film, *SMALL, "--frames", 9, "--image", picture, "--quiet", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == 9 and said["seed"] == 5 and said["recipe"]["from_picture"] is True
    assert film.read_bytes()[:3] == b"GIF"


def test_wrong_wishes_end_with_one_sentence_and_a_hint(tmp_path: Path, capsys: Any) -> None:
    assert run("a heron", "-o", tmp_path / "heron.avi", *SMALL) == 1
    assert "End it with .mp4" in capsys.readouterr().err
    assert run("a heron", "--model", "tiny-lxt") == 1
    assert "tiny-lxt" in capsys.readouterr().err
    assert run("a heron", *SMALL, "--image", tmp_path / "none.png") == 1
    assert "none.png" in capsys.readouterr().err
    assert not (tmp_path / "heron.avi").exists()
