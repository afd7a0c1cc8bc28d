"""VITS: the library's sound at equal seed, its rate and variation, a stop inside a sentence, and each known trap."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.engines import _torch
from lollms_local.engines.sniff import default_engine, sniff
from lollms_local.engines.vits import VitsSpeech
from lollms_local.errors import Cancelled, EngineNotInstalled, LoadError, UnsupportedRequest
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions
from tests.tiny.vits import build_vits

SPEC = ModelSpec(id="vits-tiny", modality="tts", engine="vits", source="path:vits")
CPU = Device("cpu")
TEXT = "A heron stood in the grey water. It waited for the dawn, and for a fish!\n\nWould it come?"


def load(path: Path, **options: Any) -> VitsSpeech:
    chosen = SpeechLoadOptions(**options)
    return VitsSpeech.load(SPEC, path, CPU, chosen, VitsSpeech.footprint(SPEC, path, CPU, chosen, 1 << 40))


def say(engine: VitsSpeech, text: str = "Hello there.", **options: Any) -> Any:
    """float32 [samples]"""
    return engine.speak(text, SpeechOptions(**{"seed": 5, **options}), Control()).audio.samples[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vits(tmp_path_factory.mktemp("vits"))


@pytest.fixture(scope="module")
def choir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vits(tmp_path_factory.mktemp("choir"), speakers=3)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VitsSpeech]:
    model = load(folder)
    yield model
    model.close()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "vits")
    return tmp_path / "vits"


def plain_library(folder: Path, text: str, seed: int, speaker: int | None = None, **attributes: float) -> Any:
    import torch
    from transformers import AutoTokenizer, VitsModel

    model = VitsModel.from_pretrained(folder, dtype=torch.float32)
    for name, value in attributes.items():
        setattr(model, name, value)
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return model(**inputs, speaker_id=speaker).waveform[0].numpy()


def test_one_sentence_is_the_librarys_sound_to_the_bit(engine: VitsSpeech, folder: Path) -> None:
    spoken = engine.speak("Hello there.", SpeechOptions(seed=5), Control())
    assert (spoken.voice, spoken.seed, spoken.audio.sample_rate) == ("vits-tiny", 5, 16_000)
    assert np.array_equal(spoken.audio.samples[0], plain_library(folder, "Hello there.", 5))


def test_rate_and_variation_reach_the_library_and_are_put_back(engine: VitsSpeech, folder: Path) -> None:
    before = say(engine)
    theirs = plain_library(folder, "Hello there.", 5, speaking_rate=0.5, noise_scale=0.2, noise_scale_duration=0.1)
    assert np.array_equal(say(engine, speed=2, noise_scale=0.2, noise_w_scale=0.1), theirs)
    assert len(theirs) < 0.8 * len(before)
    slow = plain_library(folder, "Hello there.", 5, speaking_rate=0.125)
    assert np.array_equal(say(engine, speed=0.5), slow) and len(slow) > 1.5 * len(before)
    assert np.array_equal(say(engine, length_scale=8), slow)
    assert np.array_equal(say(engine), before)


def test_a_seed_gives_the_same_again_and_without_variation_all_seeds_do(engine: VitsSpeech) -> None:
    import torch

    before = torch.random.get_rng_state()
    assert np.array_equal(say(engine, seed=1), say(engine, seed=1))
    assert not np.array_equal(say(engine, seed=1)[:500], say(engine, seed=2)[:500])
    still = {"noise_scale": 0.0, "noise_w_scale": 0.0}
    assert np.array_equal(say(engine, seed=1, **still), say(engine, seed=2, **still))
    assert torch.equal(before, torch.random.get_rng_state())


def test_speakers_are_chosen_by_number_and_the_first_is_not_the_second(choir: Path) -> None:
    engine = load(choir)
    sounds = [say(engine, voice=voice) for voice in ("vits-tiny#0", "vits-tiny#1")]
    assert np.array_equal(sounds[0], plain_library(choir, "Hello there.", 5, speaker=0))
    assert np.array_equal(sounds[1], say(engine, speaker="1"))
    assert np.array_equal(sounds[0], say(engine)), "the first speaks if none is asked for"
    assert not np.array_equal(sounds[0][:500], sounds[1][:500])
    assert VitsSpeech.voices(SPEC, choir) == ["vits-tiny", "vits-tiny#0", "vits-tiny#1", "vits-tiny#2"]
    with pytest.raises(UnsupportedRequest, match="no speaker '3'"):
        say(engine, speaker="3")


def test_a_long_text_is_spoken_sentence_by_sentence_in_order_without_a_click(engine: VitsSpeech) -> None:
    seen: list[Progress] = []
    options = SpeechOptions(seed=1)
    pieces = list(engine.stream(TEXT, options, Control(on_progress=seen.append)))
    assert " ".join(p.text for p in pieces) == " ".join(TEXT.split())
    assert [(p.done, p.total) for p in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert all(float(np.abs(p.audio.samples).max()) > 0.01 for p in pieces)
    whole = engine.speak(TEXT, options, Control()).audio
    expected = sum(p.audio.duration_s for p in pieces) + sum(p.pause_s for p in pieces[:-1])
    assert [p.pause_s for p in pieces[:-1]] == [0.2, 0.5]
    assert whole.duration_s == pytest.approx(expected, rel=0.02)
    loudest_step = max(float(np.abs(np.diff(p.audio.samples)).max()) for p in pieces)
    assert float(np.abs(np.diff(whole.samples)).max()) <= loudest_step


def test_a_sentence_without_end_is_cut_before_it_costs_too_much(engine: VitsSpeech) -> None:
    pieces = list(engine.stream("and then there was one more word " * 30, SpeechOptions(seed=1, speed=4), Control()))
    assert len(pieces) >= 3 and all(len(p.text) <= 400 for p in pieces)


def test_a_stop_comes_inside_a_sentence_and_the_next_call_is_right(engine: VitsSpeech) -> None:
    before = say(engine)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    with pytest.raises(Cancelled):
        engine.speak("Hello there.", SpeechOptions(seed=5), Control(cancelled=stop))
    assert asked == 5, "not looked at again after the word"
    assert np.array_equal(say(engine), before)
    assert engine._model.speaking_rate == 0.25


# --- the traps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["...", "你好。", "42", "!?"])
def test_a_text_without_a_known_letter_is_refused_and_not_a_crash(engine: VitsSpeech, text: str) -> None:
    with pytest.raises(UnsupportedRequest, match="nothing in this text"):
        say(engine, text)


def test_what_the_voice_cannot_say_is_left_out_and_said_in_the_log(
    engine: VitsSpeech, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lollms_local"):
        made = say(engine, "Hello 7 there é.")
    assert [record.getMessage() for record in caplog.records] == [
        "The voice vits-tiny does not know 7 é; they are left out."
    ]
    assert np.array_equal(made, plain_library(folder, "Hello 7 there é.", 5))


def test_a_voice_that_reads_romanised_text_says_what_it_needs(tmp_path: Path) -> None:
    engine = load(build_vits(tmp_path / "hindi", language="hin", uroman=True))
    assert engine.language == "hi"
    assert len(say(engine, "namaste")) > 1000
    with pytest.raises(EngineNotInstalled, match="pip install uroman"):
        say(engine, "नमस्ते")


def test_a_voice_that_reads_phonemes_says_what_it_needs_before_it_speaks(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "phonemize": True}))
    with pytest.raises(EngineNotInstalled, match="pip install phonemizer"):
        load(copy)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (" ", {}, "no text"),
        ("Hi", {"voice": "nobody"}, "not known"),
        ("Hi", {"speaker": "1"}, "no speaker '1'"),
        ("Hi", {"language": "de"}, "speaks en, not de"),
    ],
)
def test_refusals_are_one_sentence_each(engine: VitsSpeech, text: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedRequest, match=words) as caught:
        engine.speak(text, SpeechOptions(**options), Control())
    assert caught.value.hint


def test_weights_are_float32_whatever_is_asked_for(folder: Path) -> None:
    import torch

    engine = load(folder, dtype="bfloat16")
    assert {p.dtype for p in engine._model.parameters()} == {torch.float32}


def test_the_footprint_is_the_bytes_that_are_held(engine: VitsSpeech, folder: Path) -> None:
    told = VitsSpeech.footprint(SPEC, folder, CPU, SpeechLoadOptions(), 1 << 40).weights_bytes
    assert _torch.tensor_bytes(engine._model) == pytest.approx(told, rel=0.02)


def test_the_footprint_follows_the_width_of_the_decoder_in_the_folders_config(copy: Path) -> None:
    file = copy / "config.json"
    config = json.loads(file.read_text())
    told = []
    for channels in (512, 1024):
        file.write_text(json.dumps({**config, "upsample_initial_channel": channels}))
        told.append(VitsSpeech.footprint(SPEC, copy, CPU, SpeechLoadOptions(), 1 << 40).workspace_bytes)
    frames = 31 * config["sampling_rate"]  # of 8, 64 and 256 samples; about 30 s
    assert 6 * 64 * frames * 4 * 0.9 < told[0] < told[1] * 0.55 + 30e6


def test_closing_frees_every_tensor_at_once(folder: Path) -> None:
    import weakref

    model = load(folder)
    say(model)
    watched = weakref.ref(model._model)
    model.close()
    assert watched() is None


def test_missing_tensors_and_damaged_files_are_load_errors(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("text_encoder.embed_tokens.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match="missing"):
        load(copy)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LoadError, match="damaged"):
        load(copy)
    (copy / "config.json").write_text("{")
    for use in (lambda: VitsSpeech.voices(SPEC, copy), lambda: load(copy)):
        with pytest.raises(LoadError):
            use()


def test_a_folder_or_a_repository_of_this_kind_is_recognised(folder: Path) -> None:
    assert sniff(folder) == ("tts", "vits")
    assert default_engine("tts", "facebook/mms-tts-deu") == "vits"
    assert default_engine("tts", "suno/bark-small") == "bark" == default_engine("tts")
