"""MusicGen: the library's music at equal seed, exact lengths, no seam in long music, and each known trap."""

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
from lollms_local.engines import musicgen
from lollms_local.engines._music_windows import Window, chroma, cross_fade, plan_windows
from lollms_local.engines.musicgen import MusicgenMusic
from lollms_local.errors import Cancelled, GenerationError, LoadError, UnsupportedRequest
from lollms_local.media import Audio
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.music import MusicLoadOptions, MusicOptions, MusicRequest
from tests.tiny.musicgen import build_musicgen

SPEC = ModelSpec(id="musicgen-tiny", modality="ttm", engine="musicgen", source="path:musicgen")
CPU = Device("cpu")
KINDS = ("mono", "stereo", "melody")
RATE = 32_000


def load(path: Path) -> MusicgenMusic:
    options = MusicLoadOptions()
    return MusicgenMusic.load(SPEC, path, CPU, options, MusicgenMusic.footprint(SPEC, path, CPU, options, 1 << 40))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_musicgen(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path]) -> Iterator[dict[str, MusicgenMusic]]:
    loaded = {kind: load(folder) for kind, folder in folders.items()}
    yield loaded
    for engine in loaded.values():
        engine.close()


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 2 s instead of 30: long music in a short test."""
    monkeypatch.setattr(musicgen, "WINDOW_S", 2.0)
    monkeypatch.setattr(musicgen, "DECODE_S", 1.5)
    monkeypatch.setattr(musicgen, "DECODE_CONTEXT_S", 0.5)


def play(engine: MusicgenMusic, *prompts: str, control: Control | None = None, **options: Any) -> Any:
    """float32 [channels, samples]"""
    sounds = {name: options.pop(name, None) for name in ("melody", "source")}
    request = MusicRequest(prompts or ("calm piano",), **sounds)
    return engine.compose(
        request, MusicOptions(**{"seed": 3, "duration": 1, **options}), control or Control()
    ).audio.samples


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> Audio:
    wave = 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    return Audio(np.repeat(wave.astype(np.float32)[None], channels, axis=0), rate)


def plain_library(folder: Path, kind: str, seed: int, **kwargs: Any) -> Any:
    import torch
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

    family = MusicgenMelodyForConditionalGeneration if kind == "melody" else MusicgenForConditionalGeneration
    model = family.from_pretrained(folder, dtype=torch.float32)
    inputs = AutoTokenizer.from_pretrained(folder)(["calm piano"], padding=True, return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.generate(**inputs, **kwargs)[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_one_window_is_the_librarys_music_to_the_bit(
    engines: dict[str, MusicgenMusic], folders: dict[str, Path], kind: str
) -> None:
    theirs = plain_library(folders[kind], kind, 3, max_new_tokens=53)
    assert np.array_equal(play(engines[kind]), theirs[:, :RATE])


def test_sampling_options_reach_the_library(engines: dict[str, MusicgenMusic], folders: dict[str, Path]) -> None:
    said = {"guidance_scale": 1.0, "temperature": 1.3, "top_k": 20, "top_p": 0.9}
    theirs = plain_library(folders["mono"], "mono", 3, max_new_tokens=53, **said)
    assert np.array_equal(play(engines["mono"], **said), theirs[:, :RATE])
    greedy = plain_library(folders["mono"], "mono", 3, max_new_tokens=53, do_sample=False)
    assert np.array_equal(play(engines["mono"], temperature=0), greedy[:, :RATE])


@pytest.mark.parametrize("kind", ["mono", "stereo"])
@pytest.mark.parametrize("duration", [0.1, 0.57, 1.0, 1.28])
def test_the_length_is_exact_though_tokens_are_not_frames(
    engines: dict[str, MusicgenMusic], kind: str, duration: float
) -> None:
    assert play(engines[kind], duration=duration).shape == (2 if kind == "stereo" else 1, round(duration * RATE))


def test_seeds_and_prompts_make_a_difference_and_the_callers_generator_is_left_alone(
    engines: dict[str, MusicgenMusic],
) -> None:
    import torch

    before = torch.random.get_rng_state()
    first, again, seed, prompt = (
        play(engines["mono"], p, seed=s) for p, s in (("calm", 1), ("calm", 1), ("calm", 2), ("loud drums", 1))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, seed)
    assert not np.array_equal(first, prompt)
    assert torch.equal(before, torch.random.get_rng_state())


# --- long music ---------------------------------------------------------------------------------------------------


def test_windows_cover_the_time_once_and_none_is_too_long() -> None:
    for total, prompts, given, overlap, longest in (
        (10, 1, 0, 500, 1500), (1500, 1, 0, 500, 1500), (1501, 1, 0, 500, 1500), (30_000, 3, 700, 500, 1500),
        (7, 3, 0, 2, 4), (5, 1, 9, 4, 4), (2, 5, 0, 1, 2),
    ):  # fmt: skip
        windows = plan_windows(total, prompts, given, overlap, longest)
        assert sum(w.new for w in windows) == total
        assert all(w.new > 0 and w.context + w.new <= longest and w.context <= given + w.start for w in windows)
        assert [w.start for w in windows] == list(np.cumsum([0, *(w.new for w in windows)])[:-1])
    assert plan_windows(1500, 1, 0, 500, 1500) == [Window(0, 0, 0, 1500)]


@pytest.mark.parametrize("kind", KINDS)
def test_long_music_has_the_length_asked_for_and_no_step_at_a_join(
    engines: dict[str, MusicgenMusic], short_window: None, kind: str
) -> None:
    made = play(engines[kind], duration=5, overlap_s=1)
    assert made.shape[1] == 5 * RATE
    steps = np.abs(np.diff(made)).max(axis=0)
    joins = [round(s * RATE) for s in (1.5, 2.0, 3.0, 4.0, 4.5)]
    inside = np.delete(steps, [i for j in joins for i in range(j - 1700, j + 100)])
    # a random model makes noise, whose loudest step varies by some percent from place to place; a click is far louder
    assert max(float(steps[j - 1700 : j + 100].max()) for j in joins) <= 1.25 * float(inside.max())
    assert all(float(np.abs(made[:, i * RATE : (i + 1) * RATE]).max()) > 0.01 for i in range(5))


def test_a_part_continues_the_codes_of_the_part_before(engines: dict[str, MusicgenMusic]) -> None:
    for kind in KINDS:
        engine = engines[kind]
        options = MusicOptions(overlap_s=1, duration=1)
        with engine._inference():
            first = engine._part("calm", Window(0, 0, 0, 50), None, None, options, (1, 100), Control())
            second = engine._part("calm", Window(0, 50, 50, 30), first, None, options, (2, 100), Control())
        assert first.shape[1] == 50
        assert second.shape[1] == 80
        assert bool((second[:, :50] == first).all())


def test_long_codes_decoded_in_parts_sound_like_those_decoded_at_once(
    engines: dict[str, MusicgenMusic], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = play(engines["mono"], duration=3)
    monkeypatch.setattr(musicgen, "DECODE_S", 1.0)
    parts = play(engines["mono"], duration=3)
    assert parts.shape == whole.shape
    assert float(np.abs(parts - whole).max()) < 0.02 * float(np.abs(whole).max())


def test_prompts_follow_each_other_in_time(engines: dict[str, MusicgenMusic]) -> None:
    one = play(engines["mono"], "calm", "calm", duration=2)
    two = play(engines["mono"], "calm", "loud drums", duration=2)
    assert two.shape[1] == 2 * RATE
    assert np.array_equal(one[:, : RATE - 3200], two[:, : RATE - 3200])
    assert not np.array_equal(one[:, RATE:], two[:, RATE:])


# --- given sounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.33, 3.0])
def test_a_given_sound_is_kept_and_continued(engines: dict[str, MusicgenMusic], kind: str, seconds: float) -> None:
    source = tone(220, seconds)
    made = play(engines[kind], source=source, overlap_s=1)
    length = source.samples.shape[1]
    assert made.shape == (engines[kind].channels, length + RATE)
    fade = round(0.05 * RATE)
    assert np.allclose(made[:, : length - fade], source.samples[:, : length - fade], atol=1e-6)
    only = play(engines[kind], source=source, overlap_s=1, include_source=False)
    assert only.shape[1] == RATE
    assert np.array_equal(only, made[:, length:])


def test_a_given_sound_changes_what_follows(engines: dict[str, MusicgenMusic]) -> None:
    low, high = (play(engines["mono"], source=tone(f), include_source=False) for f in (110, 3000))
    assert not np.array_equal(low, high)


def test_a_sound_of_another_rate_and_layout_is_converted_first(engines: dict[str, MusicgenMusic]) -> None:
    stereo = tone(220, 1.0, rate=44_100, channels=2)
    assert play(engines["mono"], source=stereo).shape == (1, 2 * RATE)
    assert play(engines["stereo"], source=tone(220, 1.0, rate=16_000)).shape == (2, 2 * RATE)


def test_the_chroma_is_that_of_the_note_played() -> None:
    for number, frequency in ((9, 440.0), (0, 261.63), (4, 329.63)):
        found = chroma(tone(frequency, 2.0).samples[0], RATE)
        assert found.shape == (1 + 2 * RATE // 4096, 12)
        assert np.array_equal(found.sum(axis=1), np.ones(len(found)))
        assert found[2:-2].argmax(axis=1).tolist() == [number] * (len(found) - 4)


def test_a_melody_reaches_the_model_as_the_library_would_give_it(
    engines: dict[str, MusicgenMusic], folders: dict[str, Path]
) -> None:
    import torch

    melody = tone(440, 2.0)
    features = torch.from_numpy(chroma(melody.samples[0], RATE)[None])
    theirs = plain_library(folders["melody"], "melody", 3, max_new_tokens=53, input_features=features)
    with_melody = play(engines["melody"], melody=melody)
    assert np.array_equal(with_melody, theirs[:, :RATE])
    assert not np.array_equal(with_melody, play(engines["melody"]))


def test_a_melody_goes_on_where_the_next_part_begins(engines: dict[str, MusicgenMusic]) -> None:
    melody = np.eye(12, dtype=np.float32)[np.arange(500) % 12]
    later = engines["melody"]._melody_from(melody, Window(0, 1500, 500, 1000))[0].numpy()
    assert np.array_equal(later, melody[np.arange(157, 157 + 235) % 500])


def test_cross_fade_keeps_a_sound_that_is_the_same_on_both_sides() -> None:
    wave = tone(300).samples
    joined = cross_fade(wave[:, :10_000], wave[:, 9_000:], 1_000)
    assert np.allclose(joined, wave, atol=1e-6)


# --- stop, progress, refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["compose", "decode"])
def test_a_stop_comes_within_one_step_and_the_next_call_is_right(
    engines: dict[str, MusicgenMusic], kind: str, stage: str
) -> None:
    reference = play(engines[kind])
    seen: list[Progress] = []

    def reached() -> bool:
        return sum(p.stage == stage for p in seen) >= 5

    with pytest.raises(Cancelled):
        play(engines[kind], control=Control(cancelled=reached, on_progress=seen.append))
    assert sum(p.stage == stage for p in seen) == 5
    assert np.array_equal(play(engines[kind]), reference)


def test_progress_counts_seconds_of_music_over_all_parts(engines: dict[str, MusicgenMusic], short_window: None) -> None:
    seen: list[Progress] = []
    play(engines["mono"], duration=3, overlap_s=1, control=Control(on_progress=seen.append))
    composed = [p for p in seen if p.stage == "compose"]
    assert {(p.total, p.unit) for p in composed} == {(3.0, "s")}
    assert [p.done for p in composed] == sorted(p.done for p in composed)
    assert composed[-1].done == 3.0


@pytest.mark.parametrize(
    ("prompts", "sounds", "words"),
    [
        (("",), {}, "no description"),
        ((" ", ""), {}, "no description"),
        (("calm",), {"melody": tone(440)}, "cannot follow a melody"),
        (("calm",), {"source": tone(440, 0.01)}, "too short"),
    ],
)
def test_refusals_are_one_sentence_each(
    engines: dict[str, MusicgenMusic], prompts: tuple[str, ...], sounds: dict[str, Audio], words: str
) -> None:
    with pytest.raises(UnsupportedRequest, match=words) as caught:
        engines["mono"].compose(MusicRequest(prompts, **sounds), MusicOptions(), Control())
    assert caught.value.hint


def test_a_failure_inside_the_library_is_a_generation_error(engines: dict[str, MusicgenMusic]) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shape mismatch\nlong story")

    handle = engines["mono"]._model.decoder.register_forward_pre_hook(fail)
    try:
        with pytest.raises(GenerationError, match=r"^MusicGen failed: shape mismatch$"):
            play(engines["mono"])
    finally:
        handle.remove()
    assert "decode" not in vars(engines["mono"]._model.audio_encoder)


def test_a_folder_without_generation_settings_plays_with_guidance(
    engines: dict[str, MusicgenMusic], folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["mono"], copy)
    settings = json.loads((copy / "generation_config.json").read_text())
    for key in ("do_sample", "guidance_scale", "max_length"):
        settings.pop(key)
    (copy / "generation_config.json").write_text(json.dumps(settings))
    assert np.array_equal(play(load(copy)), play(engines["mono"]))


def test_missing_tensors_and_damaged_files_are_load_errors(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folders["mono"], copy)
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if name.startswith("decoder") and name.endswith("fc1.weight")))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match="missing"):
        load(copy)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LoadError, match="damaged"):
        load(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(LoadError):
        load(copy)


def test_the_footprint_is_the_bytes_that_are_held(engines: dict[str, MusicgenMusic], folders: dict[str, Path]) -> None:
    for kind in KINDS:
        told = MusicgenMusic.footprint(SPEC, folders[kind], CPU, MusicLoadOptions(), 1 << 40).weights_bytes
        held = {t.data_ptr(): t.nbytes for t in engines[kind]._model.state_dict().values() if t.nbytes}
        assert sum(held.values()) == pytest.approx(told, rel=0.02)


def test_the_footprint_follows_the_width_of_the_codec_in_the_folders_config(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["mono"], tmp_path / "wide")
    config = json.loads((copy / "config.json").read_text())
    told = []
    for filters in (64, 128):
        config["audio_encoder"]["num_filters"] = filters
        (copy / "config.json").write_text(json.dumps(config))
        told.append(MusicgenMusic.footprint(SPEC, copy, CPU, MusicLoadOptions(), 1 << 40).workspace_bytes)
    unit = 64 * 32_000 * 32 * 4  # channels, samples of the longest part, 32 s
    assert 5 * unit < told[0] < 6 * unit
    assert told[1] == pytest.approx(2 * told[0], rel=0.1)
