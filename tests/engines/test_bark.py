"""Bark: the library's sound at equal seed, long texts in one voice, a stop in every stage, and each known trap."""

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
from lollms_local.engines.bark import BarkSpeech
from lollms_local.errors import Cancelled, InsufficientMemory, LoadError, UnsupportedRequest
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions
from tests.tiny.bark import TOKENS, build_bark

SPEC = ModelSpec(id="bark-tiny", modality="tts", engine="bark", source="path:bark")
CPU = Device("cpu")
VOICE = "v2/en_speaker_3"
TEXT = "A heron stood in the grey water. [laughs] It waited for the dawn, and for a fish. " * 6


def load(path: Path, **options: Any) -> BarkSpeech:
    chosen = SpeechLoadOptions(**options)
    return BarkSpeech.load(SPEC, path, CPU, chosen, BarkSpeech.footprint(SPEC, path, CPU, chosen, 1 << 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bark(tmp_path_factory.mktemp("bark"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[BarkSpeech]:
    model = load(folder)
    yield model
    model.close()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "bark")
    return tmp_path / "bark"


def plain_library(folder: Path, text: str, seed: int, **kwargs: Any) -> Any:
    import torch
    from transformers import AutoProcessor, BarkModel

    model = BarkModel.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.generate(**processor(text, voice_preset=VOICE), **kwargs).numpy().reshape(-1)


def test_one_piece_is_the_librarys_sound_to_the_bit(engine: BarkSpeech, folder: Path) -> None:
    ours = engine.speak("Hello there.", SpeechOptions(voice=VOICE, seed=5), Control())
    assert (ours.voice, ours.seed, ours.audio.sample_rate) == (VOICE, 5, 24_000)
    assert np.array_equal(ours.audio.samples[0], plain_library(folder, "Hello there.", 5))


def test_temperatures_reach_the_stages_they_are_for(engine: BarkSpeech, folder: Path) -> None:
    options = SpeechOptions(voice=VOICE, seed=5, temperature=1.2, waveform_temperature=0, min_eos_p=0.9)
    theirs = plain_library(folder, "Hello there.", 5, semantic_temperature=1.2, coarse_do_sample=False, min_eos_p=0.9)
    assert np.array_equal(engine.speak("Hello there.", options, Control()).audio.samples[0], theirs)


def test_other_seeds_and_voices_sound_different_and_the_callers_generator_is_left_alone(engine: BarkSpeech) -> None:
    import torch

    before = torch.random.get_rng_state()
    sounds = [
        engine.speak("Hello there.", SpeechOptions(voice=v, seed=s), Control()).audio.samples
        for v, s in ((VOICE, 5), (VOICE, 6), ("v2/de_speaker_1", 5))
    ]
    assert not np.array_equal(sounds[0], sounds[1])
    assert not np.array_equal(sounds[0], sounds[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_long_text_is_spoken_whole_in_order_and_joined_without_a_click(engine: BarkSpeech) -> None:
    options = SpeechOptions(voice=VOICE, seed=1)
    pieces = list(engine.stream(TEXT, options, Control()))
    whole = engine.speak(TEXT, options, Control())
    assert len(pieces) > 2
    assert " ".join(p.text for p in pieces) == " ".join(TEXT.split())
    assert all(len(p.text) <= 200 for p in pieces)
    assert all(p.text.count("[") == p.text.count("]") for p in pieces)
    assert all(float(np.abs(p.audio.samples).max()) > 0.01 for p in pieces)
    expected = sum(p.audio.duration_s for p in pieces) + sum(p.pause_s for p in pieces[:-1])
    assert whole.audio.duration_s == pytest.approx(expected, rel=0.02)
    loudest_step = max(float(np.abs(np.diff(p.audio.samples)).max()) for p in pieces)
    assert float(np.abs(np.diff(whole.audio.samples)).max()) <= loudest_step
    assert np.array_equal(
        pieces[0].audio.samples[:, 200:-200], whole.audio.samples[:, 200 : pieces[0].audio.samples.shape[1] - 200]
    )


def test_without_a_preset_the_first_piece_lends_its_voice_to_the_rest(engine: BarkSpeech) -> None:
    import torch

    options = SpeechOptions(voice="random", seed=1)
    two = "One sentence is here.\n\nAnother one is there."
    pieces = list(engine.stream(two, options, Control()))
    history = engine._say("One sentence is here.", None, 1, options, Control())[1]
    assert [history[k].shape for k in ("semantic_prompt", "coarse_prompt", "fine_prompt")] == [
        (TOKENS,), (2, pieces[0].audio.samples.shape[1] // 320), (8, pieces[0].audio.samples.shape[1] // 320),
    ]  # fmt: skip
    inputs = engine._processor("Another one is there.", voice_preset=history)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        assert np.array_equal(engine._model.generate(**inputs).numpy().reshape(1, -1), pieces[1].audio.samples)


@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine", "decode"])
def test_a_stop_in_any_stage_comes_within_one_step_and_the_next_call_is_right(engine: BarkSpeech, stage: str) -> None:
    options = SpeechOptions(voice=VOICE, seed=9)
    reference = engine.speak("Hello there.", options, Control()).audio.samples
    seen: list[Progress] = []

    def reached() -> bool:
        return any(p.stage == stage and p.done >= 2 for p in seen)

    with pytest.raises(Cancelled):
        engine.speak("Hello there.", options, Control(cancelled=reached, on_progress=seen.append))
    assert (seen[-1].stage, seen[-1].done) == (stage, 2)
    assert np.array_equal(engine.speak("Hello there.", options, Control()).audio.samples, reference)


def test_progress_counts_every_step_and_knows_the_coarse_total(engine: BarkSpeech) -> None:
    seen: list[Progress] = []
    engine.speak("Hello there.", SpeechOptions(voice=VOICE, seed=9), Control(on_progress=seen.append))
    coarse = [p for p in seen if p.stage == "coarse"]
    assert [p.done for p in coarse] == list(range(1, len(coarse) + 1))
    assert coarse[-1].done == coarse[-1].total == int(TOKENS * 75 / 49.9) * 2
    assert sum(p.stage == "semantic" for p in seen) == TOKENS


def test_what_the_callers_progress_function_raises_comes_out_unchanged(engine: BarkSpeech) -> None:
    def fail(progress: Progress) -> None:
        if progress.stage == "coarse":
            raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        engine.speak("Hello there.", SpeechOptions(voice=VOICE), Control(on_progress=fail))


def test_one_part_at_a_time_gives_the_same_sound(folder: Path, engine: BarkSpeech) -> None:
    options = SpeechLoadOptions(offload="parts")
    footprint = BarkSpeech.footprint(SPEC, folder, CPU, options, 1 << 40)
    whole = BarkSpeech.footprint(SPEC, folder, CPU, SpeechLoadOptions(), 1 << 40)
    assert footprint.weights_bytes < whole.weights_bytes
    parts = BarkSpeech.load(SPEC, folder, CPU, options, footprint)
    spoken = SpeechOptions(voice=VOICE, seed=5)
    assert np.array_equal(
        parts.speak("Hello.", spoken, Control()).audio.samples, engine.speak("Hello.", spoken, Control()).audio.samples
    )


def test_a_small_gpu_gets_the_parts_in_turn_and_a_large_one_the_whole(folder: Path) -> None:
    gpu, options = Device("cuda"), SpeechLoadOptions(dtype="float16")
    large = BarkSpeech.footprint(SPEC, folder, gpu, options, 1 << 40)
    small = BarkSpeech.footprint(SPEC, folder, gpu, options, large.weights_bytes)
    assert (large.placement, small.placement) == ("device", "parts")
    assert small.weights_bytes < large.weights_bytes == small.host_bytes


def test_the_footprint_is_the_bytes_that_are_held(folder: Path, engine: BarkSpeech) -> None:
    from lollms_local.engines._torch import tensor_bytes

    told = BarkSpeech.footprint(SPEC, folder, CPU, SpeechLoadOptions(), 1 << 40).weights_bytes
    assert tensor_bytes(engine._model) == pytest.approx(told, rel=0.02)


def test_the_footprint_follows_the_longest_piece_that_the_folder_allows(copy: Path) -> None:
    def told() -> int:
        return BarkSpeech.footprint(SPEC, copy, CPU, SpeechLoadOptions(), 1 << 40).workspace_bytes

    short = told()
    (copy / "generation_config.json").unlink()  # then it is the library's 768 tokens, 15 s
    assert told() > short
    (copy / "generation_config.json").write_text("[]")
    with pytest.raises(LoadError, match="damaged"):
        told()


def test_closing_frees_every_tensor_at_once(folder: Path) -> None:
    import weakref

    model = load(folder)
    with pytest.raises(Cancelled):
        model.speak("Hello.", SpeechOptions(voice=VOICE), Control(cancelled=lambda: True))
    watched = weakref.ref(model._model.semantic)
    model.close()
    assert watched() is None


# --- the traps ----------------------------------------------------------------------------------------------------


def test_a_folder_without_generation_settings_speaks(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    model = load(copy)
    config = model._model.generation_config
    assert isinstance(config.semantic_config, dict)
    config.semantic_config["max_new_tokens"] = 10
    assert model.speak("Hi.", SpeechOptions(voice=VOICE, seed=0), Control()).audio.duration_s > 0.1


def test_the_librarys_own_generation_config_is_made_one_that_it_accepts() -> None:
    from transformers import GenerationConfig
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    from lollms_local.engines.bark import _plain_generation_config

    plain = _plain_generation_config(BarkGenerationConfig())
    assert type(plain) is GenerationConfig
    assert isinstance(plain.coarse_acoustics_config, dict)
    assert plain.codebook_size == 1024


def test_no_piece_is_longer_than_the_model_reads(engine: BarkSpeech) -> None:
    tokenizer = engine._processor.tokenizer
    text = "zqx" * 900 + ". " + "♪" + "la " * 60 + "♪ " + "word " * 300
    pieces = engine._pieces(text, SpeechOptions(), "")
    assert all(len(tokenizer.tokenize(p.text)) <= 256 for p in pieces)
    assert "".join(p.text for p in pieces).replace(" ", "") == text.replace(" ", "")


def test_a_missing_tensor_is_a_load_error_not_random_weights(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors.pop("semantic.layers.0.attn.out_proj.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match="missing"):
        load(copy)


@pytest.mark.parametrize("layers", [5, 1_000_000])
def test_a_config_that_asks_for_more_layers_than_the_file_has_is_refused(copy: Path, layers: int) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["semantic_config"]["num_layers"] = layers
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError):
        load(copy)


def test_damaged_files_are_load_errors(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LoadError, match="damaged"):
        BarkSpeech.footprint(SPEC, copy, CPU, SpeechLoadOptions(), 1 << 40)
    weights.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(LoadError, match="no safetensors"):
        BarkSpeech.footprint(SPEC, copy, CPU, SpeechLoadOptions(), 1 << 40)


def test_out_of_memory_is_told_as_such(engine: BarkSpeech) -> None:
    import torch

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = engine._model.coarse_acoustics.register_forward_pre_hook(fail)
    try:
        with pytest.raises(InsufficientMemory, match="Bark ran out of memory"):
            engine.speak("Hi.", SpeechOptions(voice=VOICE), Control())
    finally:
        handle.remove()


# --- voices -------------------------------------------------------------------------------------------------------


def test_all_130_published_voices_are_listed_and_a_folders_own_once_it_is_there(folder: Path) -> None:
    listed = BarkSpeech.voices(SPEC, None)
    assert len(listed) == len(set(listed)) == 130
    assert {"v2/en_speaker_6", "v2/zh_speaker_9", "v2/de_speaker_0"} <= set(listed)
    assert BarkSpeech.voices(SPEC, folder) == ["v2/en_speaker_6", "v2/en_speaker_3", "v2/de_speaker_1"]


@pytest.mark.parametrize(
    ("options", "voice"),
    [
        ({}, "v2/en_speaker_6"),
        ({"language": "de"}, "v2/de_speaker_1"),
        ({"language": "fr-FR"}, ""),
        ({"voice": "en_speaker_3"}, VOICE),
    ],
)
def test_the_default_voice_is_one_of_the_language(engine: BarkSpeech, options: dict[str, str], voice: str) -> None:
    assert engine._voice(SpeechOptions(**options))[0] == voice


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (" ", {}, "no text"),
        ("Hi", {"voice": "nobody"}, "no voice 'nobody'"),
        ("Hi", {"voice": "../../etc/passwd"}, "no voice"),
        ("Hi", {"voice": "repo_or_path"}, "no voice"),
        ("Hi", {"language": "xx"}, "does not speak 'xx'"),
        ("Hi", {"speed": 2}, "cannot change the rate"),
    ],
)
def test_refusals_are_one_sentence_each(engine: BarkSpeech, text: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedRequest, match=words) as caught:
        engine.speak(text, SpeechOptions(**options), Control())
    assert caught.value.hint


@pytest.mark.parametrize("damage", ["pickle", "escape", "floats", "huge", "missing"])
def test_a_voice_file_cannot_run_code_or_reach_outside(copy: Path, damage: str) -> None:
    index = json.loads((copy / "speaker_embeddings_path.json").read_text())
    file = copy / index[VOICE]["semantic_prompt"]
    if damage == "pickle":
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "escape":
        index[VOICE]["semantic_prompt"] = "../../etc/passwd"
        (copy / "speaker_embeddings_path.json").write_text(json.dumps(index))
    elif damage == "missing":
        file.unlink()
    else:
        np.save(file, np.array([0.5]) if damage == "floats" else np.array([10_001]))
    model = load(copy)
    with pytest.raises(LoadError, match="is damaged"):
        model.speak("Hi", SpeechOptions(voice=VOICE), Control())
