"""Piper: our speech is the library's speech, sentence by sentence, and refusals are sentences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.engines.piper import PiperSpeech
from lollms_local.errors import Cancelled, LoadError, UnsupportedRequest
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions

NAME = "piper-en-us-joe-medium"
SPEC = ModelSpec(id=NAME, modality="tts", engine="piper", source="path:voice", languages=("en",))
STILL = SpeechOptions(noise_scale=0.0, noise_w_scale=0.0)
TEXT = "The first sentence is short. The second one, by Mr. Bean, is a little longer! Is this the third?"


def load(path: Path) -> PiperSpeech:
    options = SpeechLoadOptions()
    footprint = PiperSpeech.footprint(SPEC, path, Device("cpu"), options, 1 << 40)
    return PiperSpeech.load(SPEC, path, Device("cpu"), options, footprint)


@pytest.fixture(scope="module")
def engine(models_dir: Path) -> Iterator[PiperSpeech]:
    voice = load(models_dir / NAME)
    yield voice
    voice.close()


@pytest.fixture(scope="module")
def plain(models_dir: Path) -> Any:
    from piper import PiperVoice

    return PiperVoice.load(next((models_dir / NAME).glob("*.onnx")))


def settings(**kwargs: Any) -> Any:
    from piper.config import SynthesisConfig

    return SynthesisConfig(**kwargs)


def test_a_sentence_is_the_librarys_speech_to_the_bit(engine: PiperSpeech, plain: Any) -> None:
    text = "A heron stood in the grey water at dawn."
    theirs = np.concatenate(
        [c.audio_float_array for c in plain.synthesize(text, settings(noise_scale=0.0, noise_w_scale=0.0))]
    )
    ours = engine.speak(text, STILL, Control()).audio
    assert ours.sample_rate == plain.config.sample_rate == 22050
    assert np.array_equal(ours.samples[0], theirs)


def test_a_seed_gives_the_librarys_speech_of_that_seed_and_the_same_again(
    engine: PiperSpeech, models_dir: Path
) -> None:
    import onnxruntime
    from piper import PiperVoice

    text = "Once more, with feeling."
    onnxruntime.set_seed(7)
    fresh = PiperVoice.load(next((models_dir / NAME).glob("*.onnx")))
    theirs = np.concatenate([c.audio_float_array for c in fresh.synthesize(text)])
    ours = [engine.speak(text, SpeechOptions(seed=s), Control()).audio.samples[0] for s in (7, 7, 8)]
    assert np.array_equal(ours[0], theirs)
    assert np.array_equal(ours[0], ours[1])
    assert not np.array_equal(ours[0][:1000], ours[2][:1000])


def test_speed_shortens_the_speech(engine: PiperSpeech) -> None:
    text = "This sentence should take about half as long when it is spoken at twice the speed."
    lengths = [engine.speak(text, STILL.model_copy(update={"speed": s}), Control()).audio.duration_s for s in (1, 2)]
    assert 0.45 * lengths[0] < lengths[1] < 0.7 * lengths[0]  # the model rounds each sound up to 12 ms


def test_sentences_come_one_by_one_in_order_and_the_next_is_not_begun(engine: PiperSpeech) -> None:
    seen: list[Progress] = []
    stream = engine.stream(TEXT, STILL, Control(on_progress=seen.append))
    first = next(stream)
    assert first.text == "The first sentence is short."
    assert [(p.done, p.total, p.unit) for p in seen] == [(0, 3, "piece")]
    rest = [piece.text for piece in stream]
    assert rest == ["The second one, by Mr. Bean, is a little longer!", "Is this the third?"]
    assert seen[-1].done == seen[-1].total == 3


def test_the_whole_is_its_pieces_with_pauses_and_no_click_at_a_join(engine: PiperSpeech) -> None:
    pieces = list(engine.stream(TEXT, STILL, Control()))
    whole = engine.speak(TEXT, STILL, Control()).audio
    expected = sum(p.audio.duration_s for p in pieces) + sum(p.pause_s for p in pieces[:-1])
    assert whole.duration_s == pytest.approx(expected, rel=0.02)
    assert [p.pause_s for p in pieces[:-1]] == [0.2, 0.2]
    loudest_step = max(float(np.abs(np.diff(p.audio.samples[0])).max()) for p in pieces)
    assert float(np.abs(np.diff(whole.samples[0])).max()) <= loudest_step
    end = pieces[0].audio.samples.shape[1]
    assert float(np.abs(whole.samples[0, end - 1 : end + 1]).max()) < 1e-3


def test_pauses_are_as_long_as_asked(engine: PiperSpeech) -> None:
    text = "One is here.\n\nTwo is here."
    short, long = (
        engine.speak(text, STILL.model_copy(update={"paragraph_pause_s": s}), Control()).audio.duration_s
        for s in (0, 2)
    )
    assert long - short == pytest.approx(2.0, abs=1e-3)


def test_a_sentence_without_end_is_cut_and_loses_no_word(engine: PiperSpeech) -> None:
    text = "and then there was one more word " * 40
    pieces = [p.text for p in engine.stream(text, SpeechOptions(noise_scale=0, noise_w_scale=0, speed=4), Control())]
    assert " ".join(pieces) == text.strip()
    assert max(map(len, pieces)) <= 400


def test_cancel_stops_after_the_sentence_and_the_next_call_is_right(engine: PiperSpeech) -> None:
    reference = engine.speak(TEXT, STILL, Control()).audio.samples
    begun: list[float] = []
    control = Control(cancelled=lambda: len(begun) > 0, on_progress=lambda p: begun.append(p.done))
    with pytest.raises(Cancelled):
        engine.speak(TEXT, STILL, control)
    assert begun == [0]
    assert np.array_equal(engine.speak(TEXT, STILL, Control()).audio.samples, reference)


def test_two_threads_may_speak_at_once(engine: PiperSpeech) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = ["The first speaker says this.", "A second speaker says that."] * 3
    alone = [engine.speak(t, STILL, Control()).audio.samples for t in texts]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda t: engine.speak(t, STILL, Control()).audio.samples, texts))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "no text"),
        (" \n ", {}, "no text"),
        ("...", {}, "nothing in this text"),
        ("Hi", {"language": "fr"}, "speaks en, not fr"),
        ("Hi", {"voice": "nobody"}, "'nobody' is not known"),
        ("Hi", {"speaker": "7"}, "no speaker '7'"),
    ],
)
def test_refusals_are_one_sentence_each(engine: PiperSpeech, text: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedRequest, match=words) as caught:
        engine.speak(text, SpeechOptions(**options), Control())
    assert caught.value.message.count(". ") == 0
    assert caught.value.hint


def test_the_voices_own_language_in_any_spelling_is_accepted(engine: PiperSpeech) -> None:
    for language in ("en", "EN", "en-US", "en_us"):
        assert engine.speak("Hi.", SpeechOptions(language=language), Control()).audio.duration_s > 0.2


@pytest.fixture
def copy(models_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "voice"
    shutil.copytree(models_dir / NAME, folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    file = next(folder.glob("*.onnx.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_speakers_of_a_voice_are_listed_and_chosen_by_name_or_number(copy: Path) -> None:
    edit(copy, num_speakers=2, speaker_id_map={"anna": 0, "ben": 1})
    assert PiperSpeech.voices(SPEC, copy) == [NAME, f"{NAME}#anna", f"{NAME}#ben"]
    voice = load(copy)
    for options in ({"voice": f"{NAME}#ben"}, {"speaker": "ben"}, {"speaker": "1"}):
        assert voice._settings(SpeechOptions(**options)).speaker_id == 1
    assert voice._settings(SpeechOptions()).speaker_id is None
    with pytest.raises(UnsupportedRequest, match="no speaker 'carl'"):
        voice._settings(SpeechOptions(speaker="carl"))


def test_damaged_voices_are_load_errors(copy: Path) -> None:
    model, config = next(copy.glob("*.onnx")), next(copy.glob("*.onnx.json"))
    edit(copy, phoneme_type="pinyin")
    with pytest.raises(LoadError, match="g2pW"):
        load(copy)
    config.write_text("{")
    with pytest.raises(LoadError, match="not the description"):
        load(copy)
    config.unlink()
    with pytest.raises(LoadError, match="missing"):
        load(copy)
    config.write_text("{}")
    with pytest.raises(LoadError, match="not the description"):
        load(copy)
    model.unlink()
    with pytest.raises(LoadError, match="0 ONNX voices"):
        load(copy)


def test_a_truncated_model_is_a_load_error(copy: Path) -> None:
    model = next(copy.glob("*.onnx"))
    model.write_bytes(model.read_bytes()[:100_000])
    with pytest.raises(LoadError, match="could not be loaded"):
        load(copy)
