"""local_ttm inside the real host, the real engine on tiny MusicGens: every call a host makes, and the files it gets."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lollms_client import LollmsClient
from lollms_client.lollms_personality.lollms_personality import BindingToolsBuilder

from lollms_local.client import connect
from lollms_local.errors import Cancelled, LocalModelError, MediaError, UnsupportedRequest
from lollms_local.media import Audio, decode_audio, encode_audio
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny.musicgen import build_musicgen
from tests.tiny.vits import build_vits

RATE = 32_000
PROMPT = "a calm waltz for piano"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in ("mono", "stereo", "melody"):
        build_musicgen(root / f"tiny-{kind}", kind)  # type: ignore[arg-type]
    return root


@pytest.fixture
def runtime(models: Path) -> Iterator[Runtime]:
    fresh = Runtime(Settings(models_dir=str(models)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


def client(models: Path, kind: str = "mono", **config: Any) -> LollmsClient:
    """The model by its path, as a user with a folder of their own names it."""
    return LollmsClient(
        llm_binding_name="",
        ttm_binding_name="local_ttm",
        ttm_binding_config={"model_name": str(models / f"tiny-{kind}"), "seed": "3", **config},
        debug=False,
    )


def heard(data: bytes) -> Audio:
    """What a player would play; it must be a sound that can be heard."""
    audio = decode_audio(data)
    assert float(np.abs(audio.samples).max()) > 0.01
    return audio


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE) -> bytes:
    wave = 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    return encode_audio(Audio(wave.astype(np.float32), rate))


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [0.5, "1", "0.25", 1])
def test_the_length_in_seconds_may_be_a_number_or_a_text_and_is_kept(
    runtime: Runtime, models: Path, duration: Any
) -> None:
    data = client(models).generate_music(PROMPT, duration=duration)
    assert data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    assert heard(data).samples.shape == (1, round(float(duration) * RATE))
    assert heard(data).sample_rate == RATE


@pytest.mark.parametrize(
    "asked",
    [
        {"duration_s": 0.3, "temperature": None, "guidance_scale": "None", "callback": None},
        {"duration": "0.3", "seed": "3", "top_k": -1, "unknown": object(), "lyrics": "", "melody": None, "audio": None},
        {"length": 0.3, "model": "tiny-mono", "format": "WAV"},
    ],
)
def test_numbers_texts_and_none_are_what_the_host_meant(runtime: Runtime, models: Path, asked: dict[str, Any]) -> None:
    host = client(models)
    assert np.array_equal(
        heard(host.generate_music(PROMPT, **asked)).samples, heard(host.generate_music(PROMPT, duration=0.3)).samples
    )


def test_without_a_configured_model_one_that_is_here_plays(runtime: Runtime, models: Path) -> None:
    host = connect(music=True, llm_binding_name="", ttm_binding_config={"duration": "0.3"})
    assert runtime.manager.snapshot() == [], "nothing is loaded before it is needed"
    assert heard(host.generate_music(PROMPT)).duration_s == pytest.approx(0.3)
    assert set(host.ttm.list_models()[:3]) == {"tiny-mono", "tiny-stereo", "tiny-melody"}
    assert "musicgen-small" in host.ttm.list_models()


def test_the_configured_length_holds_until_the_call_says_another(runtime: Runtime, models: Path) -> None:
    host = client(models, duration="0.5")
    assert heard(host.generate_music(PROMPT)).duration_s == 0.5
    assert heard(host.generate_music(PROMPT, duration=1)).duration_s == 1.0


def test_the_personality_s_tools_write_wav_files_and_say_what_is_refused(
    runtime: Runtime, models: Path, tmp_path: Path
) -> None:
    binding = client(models).ttm
    answer = BindingToolsBuilder._make_ttm_tool(binding, tmp_path)["callable"](PROMPT, duration=1, file_name="waltz")
    assert answer["success"], answer
    assert heard((tmp_path / "waltz.wav").read_bytes()).duration_s == 1.0
    sing = BindingToolsBuilder._make_song_tool(binding, tmp_path)["callable"]
    answer = sing(PROMPT, duration=1, file_name="song")
    assert answer["success"] and heard((tmp_path / "song.wav").read_bytes()).duration_s == 1.0
    refused = sing(PROMPT, lyrics="[Verse] la la", duration=1)
    assert refused["success"] is False and "cannot sing" in refused["error"]


def test_prompts_in_a_list_rule_equal_shares_of_the_time(runtime: Runtime, models: Path) -> None:
    host = client(models)
    one, two = (heard(host.generate_music(p, duration=2)).samples for p in (["calm", "calm"], ["calm", "loud drums"]))
    assert one.shape == two.shape == (1, 2 * RATE)
    assert np.array_equal(one[:, : RATE - 3200], two[:, : RATE - 3200])
    assert not np.array_equal(one[:, RATE:], two[:, RATE:])


def test_same_seed_same_bytes_and_the_file_says_which(runtime: Runtime, models: Path) -> None:
    host = client(models)
    first = host.generate_music(PROMPT, duration=0.5)
    same, other = (host.generate_music(PROMPT, duration=0.5, seed=seed) for seed in (3, "4"))
    assert first == same != other
    with av.open(io.BytesIO(first)) as file:
        assert file.metadata["comment"] == "model=tiny-mono; seed=3"
    free = client(models, seed="-1")
    unseeded = free.generate_music(PROMPT, duration=0.5)
    with av.open(io.BytesIO(unseeded)) as file:
        seed = int(file.metadata["comment"].rpartition("seed=")[2])
    assert free.generate_music(PROMPT, duration=0.5, seed=seed) == unseeded


@pytest.mark.parametrize(("form", "codec"), [("flac", "flac"), ("mp3", "mp3"), ("ogg", "opus"), ("opus", "opus")])
def test_every_format_is_what_it_says_in_stereo(runtime: Runtime, models: Path, form: str, codec: str) -> None:
    data = client(models, "stereo", format=form).generate_music(PROMPT, duration=1)
    with av.open(io.BytesIO(data)) as file:
        assert codec in file.streams.audio[0].codec_context.name and file.streams.audio[0].codec_context.channels == 2
    assert heard(data).duration_s == pytest.approx(1.0, abs=0.1)


# --- given sounds -----------------------------------------------------------------------------------------------------


def test_music_is_continued_from_bytes_or_a_path_and_kept_before_it(
    runtime: Runtime, models: Path, tmp_path: Path
) -> None:
    host = client(models, duration=0.3)
    given = tone(220, 0.5)
    path = tmp_path / "beginning ünï.wav"
    path.write_bytes(given)
    made = host.edit_music(given, PROMPT)
    assert heard(made).duration_s == 0.8
    kept = round(0.45 * RATE)
    assert np.allclose(heard(made).samples[:, :kept], decode_audio(given).samples[:, :kept], atol=1e-4)
    for same in (
        host.edit_music(audio=str(path), prompt=PROMPT, mode="continue", duration="0.3"),
        host.ttm.edit_music(music=path, prompt=PROMPT),
        host.generate_music(PROMPT, audio=io.BytesIO(given)),
    ):
        assert same == made
    only = host.edit_music(given, PROMPT, include_source="false")
    assert np.array_equal(heard(only).samples, heard(made).samples[:, RATE // 2 :])


def test_a_melody_is_followed_by_a_model_that_can(runtime: Runtime, models: Path) -> None:
    host = client(models, "melody")
    low, high = (host.edit_music(tone(f, 2.0), PROMPT, mode="melody", duration=0.5) for f in (261.63, 440.0))
    assert heard(low).duration_s == 0.5
    assert low != high != host.generate_music(PROMPT, duration=0.5)
    assert host.generate_music(PROMPT, melody=tone(440.0, 2.0), duration=0.5) == high


# --- together with others ---------------------------------------------------------------------------------------------


def test_cancel_stops_at_the_next_token_and_the_next_call_is_right(runtime: Runtime, models: Path) -> None:
    binding = client(models).ttm
    before = binding.generate_music(PROMPT, duration=1)
    seen: list[dict[str, Any]] = []

    def stop_at_the_fifth(progress: dict[str, Any]) -> None:
        seen.append(progress)
        if len(seen) == 5:
            binding.cancel()

    with pytest.raises(Cancelled):
        binding.generate_music(PROMPT, duration=1, progress_callback=stop_at_the_fifth)
    assert [row["completed"] for row in seen] == [0.02, 0.04, 0.06, 0.08, 0.1]
    assert {(row["total"], row["unit"]) for row in seen} == {(1.0, "s")}
    with pytest.raises(Cancelled):
        binding.generate_music(PROMPT, duration=1, cancelled=lambda: True)
    assert binding.generate_music(PROMPT, duration=1) == before


def test_the_host_may_unload_at_any_time(runtime: Runtime, models: Path) -> None:
    first, second = client(models), client(models)
    assert len(runtime.manager.snapshot()) == 1, "two clients, one copy"
    before = first.generate_music(PROMPT, duration=0.3)
    refused: list[bool] = []
    assert first.generate_music(
        PROMPT, duration=0.3, progress_callback=lambda progress: refused.append(second.ttm.unload_model())
    ) == before  # fmt: skip
    assert refused and not any(refused), "in use: nothing changes and the answer says so"
    assert second.ttm.unload_model() is True and not first.ttm.has_active_resources()
    assert first.generate_music(PROMPT, duration=0.3) == before


def test_music_and_speech_at_once_draw_from_one_generator_and_stay_what_their_seeds_say(
    runtime: Runtime, models: Path, tmp_path: Path
) -> None:
    host = LollmsClient(
        llm_binding_name="",
        ttm_binding_name="local_ttm",
        ttm_binding_config={"model_name": str(models / "tiny-mono")},
        tts_binding_name="local_tts",
        tts_binding_config={"model_name": str(build_vits(tmp_path / "tiny-vits"))},
        debug=False,
    )
    jobs = [
        *(lambda s=seed: host.generate_music(PROMPT, duration=0.3, seed=s) for seed in (1, 2)),
        *(lambda s=seed: host.generate_audio("Hello there.", seed=s) for seed in (1, 2)),
    ]
    alone = [job() for job in jobs]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda job: job(), jobs * 2))
    assert together == alone * 2


# --- what is refused --------------------------------------------------------------------------------------------------


def test_songs_are_instrumental_and_lyrics_are_refused_unless_they_may_be_left_out(
    runtime: Runtime, models: Path
) -> None:
    host = client(models)
    plain = host.generate_music(PROMPT, duration=0.5)
    assert host.generate_song(PROMPT, duration=0.5) == plain
    assert host.generate_song_from_lyrics(PROMPT, "", duration=0.5) == plain
    for sing in (
        lambda **more: host.generate_song_from_lyrics(PROMPT, "la la", duration=0.5, **more),
        lambda **more: host.generate_song(PROMPT, lyrics="la la", duration=0.5, **more),
        lambda **more: host.generate_music(PROMPT, lyrics="la la", duration=0.5, **more),
    ):
        with pytest.raises(UnsupportedRequest, match="cannot sing") as refusal:
            sing()
        assert "ignore_lyrics" in refusal.value.hint
        assert sing(ignore_lyrics="true") == plain
    assert client(models, ignore_lyrics=True).generate_song_from_lyrics(PROMPT, "la la", duration=0.5) == plain


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda m: m.generate_music(""), "no description"),
        (lambda m: m.generate_music(None), "no description"),
        (lambda m: m.generate_music([]), "no description"),
        (lambda m: m.generate_music(["calm", " "]), "no description"),
        (lambda m: m.generate_music(PROMPT, duration="long"), "duration"),
        (lambda m: m.generate_music(PROMPT, duration=6000), "duration"),
        (lambda m: m.generate_music(PROMPT, format="aiff"), "format"),
        (lambda m: m.generate_music(PROMPT, melody=tone(440)), "cannot follow a melody"),
        (lambda m: m.edit_music(tone(440), PROMPT, mode="melody"), "cannot follow a melody"),
        (lambda m: m.edit_music(tone(440), PROMPT, mode="remix"), "'remix'"),
        (lambda m: m.edit_music(None, PROMPT), "no music to edit"),
        (lambda m: m.edit_music(tone(440, 0.01), PROMPT), "too short"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_sentence_with_a_hint(
    runtime: Runtime, models: Path, call: Any, why: str
) -> None:
    binding = client(models).ttm
    with pytest.raises(UnsupportedRequest, match=why) as refusal:
        call(binding)
    assert refusal.value.message.endswith(".") and refusal.value.message.count(". ") == 0
    assert refusal.value.hint and binding.get_last_error().startswith(refusal.value.message)


def test_a_bad_sound_is_said_before_anything_is_loaded(runtime: Runtime, models: Path, tmp_path: Path) -> None:
    binding = client(models).ttm
    assert binding.unload_model()
    for source in (b"", b"no sound at all", tmp_path / "nothing.wav", "https://example.org/a.wav"):
        for mode in ("continue", "melody"):
            with pytest.raises(MediaError):
                binding.edit_music(source, PROMPT, mode=mode)
    assert runtime.manager.snapshot() == []


def test_errors_come_as_dictionaries_where_the_user_chose_that(runtime: Runtime, models: Path) -> None:
    host = client(models, error_mode="dict")
    answer: Any = host.generate_music("")
    assert answer == {
        "status": "error", "message": "There is no description of the music.",
        "hint": "Say what it should sound like.",
    }  # fmt: skip
    assert host.generate_song_from_lyrics(PROMPT, "la la")["status"] == "error"
    assert heard(host.generate_music(PROMPT, duration=0.3)).duration_s == pytest.approx(0.3)


def test_a_model_that_is_not_here_or_is_damaged_is_said_and_the_client_stands(
    runtime: Runtime, models: Path, tmp_path: Path
) -> None:
    binding = client(models).ttm
    with pytest.raises(LocalModelError, match="lollms-local models download musicgen-small --yes"):
        binding.generate_music(PROMPT, model="musicgen-small")
    with pytest.raises(LocalModelError, match="musicgen-small"):
        binding.generate_music(PROMPT, model="musicgen-smal")
    damaged = tmp_path / "tiny-damaged"
    shutil.copytree(models / "tiny-mono", damaged)
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    host = LollmsClient(
        llm_binding_name="", ttm_binding_name="local_ttm", ttm_binding_config={"model_name": str(damaged)}, debug=False
    )
    assert "damaged" in host.ttm.get_last_error()
