"""`lollms-local speak`, `voices` and `music`, as typed."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lollms_local.cli import main
from lollms_local.media import Audio, decode_audio, encode_audio
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny.musicgen import build_musicgen

VOICE = "piper-en-us-joe-medium"
LINE = "The first sentence is short."
RATE = 32_000


@pytest.fixture(scope="module")
def models(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the starter voice and a tiny MusicGen."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(models_dir / VOICE, root / VOICE)
    build_musicgen(root / "tiny-mono")
    return root


@pytest.fixture(autouse=True)
def runtime(models: Path) -> Iterator[Runtime]:
    fresh = Runtime(Settings(models_dir=str(models)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return int(ended.value.code or 0)


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# --- speak ------------------------------------------------------------------------------------------------------------


def test_a_text_is_spoken_into_a_file_and_its_name_and_length_are_said(tmp_path: Path, capsys: Any) -> None:
    assert run("speak", LINE, "-o", tmp_path / "out.wav", "--seed", 7) == 0
    said = capsys.readouterr().out
    assert "out.wav" in said and f"voice {VOICE}" in said and "seed 7" in said
    sound = decode_audio(tmp_path / "out.wav")
    assert 1 < sound.duration_s < 4 and float(np.abs(sound.samples).max()) > 0.05
    assert f"{sound.duration_s:.3g} s" in said


def test_a_text_is_read_from_a_pipe_and_the_sound_goes_into_one(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    pipe_in(monkeypatch, "\ufeffThe café is open.\n".encode())
    assert run("speak", "-o", "-") == 0
    printed = capfdbinary.readouterr()
    assert printed.out[:4] == b"RIFF" and decode_audio(printed.out).duration_s > 0.8
    assert VOICE.encode() in printed.err


def test_voice_model_speed_and_the_files_ending_are_heeded(tmp_path: Path, capsys: Any) -> None:
    lengths = {}
    for name, more in {
        "plain.wav": (), "fast.flac": ("--speed", 2, "--voice", VOICE), "named.mp3": ("--model", VOICE, "-l", "en"),
        "both.opus": ("--model", VOICE, "--voice", f"{VOICE}#0", "--json"),
    }.items():  # fmt: skip
        assert run("speak", LINE, "-o", tmp_path / name, *more) == 0
        lengths[name] = decode_audio(tmp_path / name).duration_s
    assert lengths["fast.flac"] < 0.75 * lengths["plain.wav"]
    for name, codec in {"fast.flac": "flac", "named.mp3": "mp3", "both.opus": "opus"}.items():
        with av.open(str(tmp_path / name)) as file:
            assert codec in file.streams.audio[0].codec_context.name
    said = json.loads("{" + capsys.readouterr().out.partition("{")[2])
    assert said["model"] == VOICE and said["voice"] == f"{VOICE}#0"
    assert said["duration_s"] == pytest.approx(lengths["both.opus"], abs=0.1)


def test_voices_are_listed_one_a_line(capsys: Any) -> None:
    assert run("voices") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == VOICE and "v2/en_speaker_6" in lines
    assert run("voices", "--model", VOICE, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [VOICE]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("speak", " "), "no text"),
        (("speak", LINE, "-o", "out.txt"), "End it with .wav, .flac, .mp3, .ogg, .opus"),
        (("speak", LINE, "--voice", "nobody"), "nobody"),
        (("speak", LINE, "--model", "piper-en-us-jo"), VOICE),
        (("speak", LINE, "--speed", 9), "speed"),
        (("speak", LINE, "--voice", "v2/en_speaker_6"), "lollms-local models download bark-small --yes"),
        (("music", " "), "no description"),
        (("music", "calm", "--melody", "none.wav"), "none.wav"),
        (("music", "calm", "--duration", 6000), "duration"),
        (("music", "calm", "-o", "music"), "no sound file's name"),
    ],
)
def test_wrong_wishes_end_with_one_sentence_and_a_hint(
    arguments: tuple[Any, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert why in said and len(said.strip().splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_without_text_or_a_pipe_it_says_how(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(b""))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert run("speak") == 1
    assert 'lollms-local speak "Hello"' in capsys.readouterr().err
    pipe_in(monkeypatch, b"\xff\xfe\x00")
    assert run("speak") == 1
    assert "not text" in capsys.readouterr().err


# --- music ------------------------------------------------------------------------------------------------------------


def test_music_is_made_and_the_seed_that_makes_it_again_is_said(tmp_path: Path, capsys: Any) -> None:
    assert run("music", "a calm waltz", "-o", tmp_path / "one.wav", "--duration", 0.5) == 0
    said = capsys.readouterr().out
    assert "model tiny-mono" in said and "0.5 s" in said
    seed = said.rpartition("seed ")[2].strip()
    assert run("music", "a calm waltz", "-o", tmp_path / "two.wav", "-d", 0.5, "--seed", seed, "-m", "tiny-mono") == 0
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()
    assert decode_audio(tmp_path / "one.wav").samples.shape == (1, RATE // 2)


def test_a_sound_is_continued_and_several_prompts_share_the_time(tmp_path: Path, capsys: Any) -> None:
    wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(RATE // 2) / RATE)
    (tmp_path / "start.wav").write_bytes(encode_audio(Audio(wave.astype(np.float32), RATE)))
    more = ("--continue", tmp_path / "start.wav", "--seed", 3, "-d", 0.4, "--quiet", "--json")
    assert run("music", "calm", "loud drums", "-o", tmp_path / "whole.flac", *more) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "whole.flac"), "duration_s": 0.9, "model": "tiny-mono", "seed": 3,
    }  # fmt: skip
    assert run("music", "calm", "loud drums", "-o", tmp_path / "new.flac", *more, "--only-new") == 0
    whole, new = (decode_audio(tmp_path / name).samples for name in ("whole.flac", "new.flac"))
    assert whole.shape == (1, round(0.9 * RATE)) and np.array_equal(whole[:, RATE // 2 :], new)
