"""local_stt inside the real host: the real Whisper hears what the real voice said, in every form a caller uses."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lollms_client import LollmsClient
from lollms_client.lollms_personality import lollms_personality

from lollms_local.client import connect
from lollms_local.errors import Cancelled, LocalModelError, MediaError, UnsupportedRequest
from lollms_local.media import Audio, encode_audio, encode_video, resample
from lollms_local.modalities.transcription import Transcript
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.spoken import TEXT, spoken, words

TOP = Path(__file__).parents[2]
QUESTION = "What is the capital of France?"
TIME = r"\d\d:\d\d:\d\d{}\d\d\d"


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Iterator[Runtime]:
    """One for the file: a model that is not loaded anew for every test."""
    fresh = Runtime(Settings(models_dir=str(models_dir)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


@pytest.fixture(scope="module")
def speech(models_dir: Path) -> Audio:
    return spoken(models_dir)


@pytest.fixture(scope="module")
def wav(speech: Audio) -> bytes:
    return encode_audio(speech)


def client(**config: Any) -> LollmsClient:
    """One hypothesis at a time: half the work, and the voice is clear. As text: so it comes from a configuration."""
    given = {"model_name": "whisper-tiny.en", "beam_size": "1", **config}
    return LollmsClient(llm_binding_name="", stt_binding_name="local_stt", stt_binding_config=given)


def heard_right(text: str, said: str = TEXT) -> None:
    assert words(text) == words(said)


# --- every door -------------------------------------------------------------------------------------------------------


def test_path_bytes_and_every_name_that_callers_use_give_the_right_words(
    runtime: Runtime, wav: bytes, tmp_path: Path
) -> None:
    host = client()
    assert [row.label for row in runtime.manager.snapshot()] == ["whisper-tiny.en"], "named, so the host loads it"
    path = tmp_path / "speech ünï.wav"
    path.write_bytes(wav)
    for heard in (
        host.transcribe_audio(path),
        host.transcribe_audio(wav),
        host.stt.transcribe(audio=wav),
        host.stt.transcribe_audio(audio_path=str(path)),
        host.stt.transcribe_audio(audio_source=io.BytesIO(wav), model="whisper-tiny.en", unknown=object()),
    ):
        heard_right(heard)


def test_the_personality_s_tool_writes_the_file_down(runtime: Runtime, wav: bytes, tmp_path: Path) -> None:
    (tmp_path / "note.wav").write_bytes(wav)
    owner = next(c for c in vars(lollms_personality).values() if hasattr(c, "_make_stt_tool"))
    answer = owner._make_stt_tool(client().stt, tmp_path)["callable"]("note.wav")
    assert answer["success"] is True
    heard_right(answer["transcript"])


def test_connect_gives_the_same_client(runtime: Runtime, wav: bytes) -> None:
    heard_right(connect(transcription=True, llm_binding_name="").transcribe_audio(wav))


def test_running_the_binding_s_file_alone_prints_what_it_heard(models_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "bindings" / "local_stt" / "__init__.py")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={
            **os.environ,
            "LOLLMS_LOCAL_MODELS_DIR": str(models_dir),
            "PYTHONPATH": os.pathsep.join([str(TOP), *filter(None, sys.path)]),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    heard = re.search(r"^heard: (.*)$", done.stdout, re.MULTILINE)
    assert heard is not None, done.stdout
    heard_right(heard[1], "The quick brown fox jumps over the lazy dog.")


# --- every form -------------------------------------------------------------------------------------------------------


def test_subtitles_lines_and_json_carry_the_words_and_their_times(runtime: Runtime, wav: bytes, speech: Audio) -> None:
    host = client()
    srt = host.transcribe_audio(wav, output="srt")
    assert re.match(rf"1\n{TIME.format(',')} --> {TIME.format(',')}\n\S", srt)
    vtt = host.transcribe_audio(wav, response_format="VTT")
    assert re.match(rf"WEBVTT\n\n{TIME.format('.')} --> {TIME.format('.')}\n\S", vtt)
    lines = host.transcribe_audio(wav, output="segments")
    assert re.match(r"\[0\.\d\d -> \d\.\d\d\] \S", lines)
    for text in (srt, vtt, lines):
        heard_right(" ".join(re.sub(r"WEBVTT|\[.*?\]", "", line) for line in text.splitlines() if "-->" not in line))
    data = json.loads(host.transcribe_audio(wav, output="json", word_timestamps="true"))
    assert data["language"] == "en" and data["model"] == "whisper-tiny.en"
    assert data["duration_s"] == pytest.approx(speech.duration_s, abs=0.1)
    heard_right(data["text"])
    heard_right(" ".join(word["text"] for segment in data["segments"] for word in segment["words"]))


def test_the_form_may_be_configured_and_a_call_wins_over_it(runtime: Runtime, wav: bytes) -> None:
    host = client(output="srt", vad_filter="False")
    assert "-->" in host.transcribe_audio(wav)
    heard_right(host.transcribe_audio(wav, output="text"))


def test_the_detailed_answer_knows_segments_words_and_probabilities(
    runtime: Runtime, wav: bytes, speech: Audio
) -> None:
    found = client().stt.transcribe_detailed(wav, word_timestamps=True)
    assert isinstance(found, Transcript)
    heard_right(found.text)
    timed = [word for segment in found.segments for word in segment.words]
    assert [w.text for w in timed] == found.text.split()
    assert all(0 < w.probability <= 1 and w.start_s <= w.end_s <= speech.duration_s + 0.5 for w in timed)
    assert [w.start_s for w in timed] == sorted(w.start_s for w in timed)
    assert all(-1 < s.avg_logprob < 0 and s.no_speech_prob < 0.5 for s in found.segments)


def test_turns_have_the_host_s_form_and_are_named_only_where_that_is_known(
    runtime: Runtime, models_dir: Path, speech: Audio, wav: bytes
) -> None:
    host = client()
    (turn,) = host.transcribe_audio_with_diarization(wav)
    assert set(turn) == {"speaker", "start", "end", "text"} and turn["speaker"] == "Speaker 1"
    assert 0 <= turn["start"] < turn["end"] <= speech.duration_s + 0.5
    heard_right(turn["text"])
    assert host.transcribe_audio_with_diarization(wav, participants=["Ann"])[0]["speaker"] == "Ann"
    # two names, one voice as far as anybody here can tell: nobody's words are put into another's mouth
    assert host.transcribe_audio_with_diarization(wav, participants=["Ann", "Bo"])[0]["speaker"] == "Speaker 1"


def test_with_a_microphone_each_the_speakers_take_turns_in_order_of_time(
    runtime: Runtime, models_dir: Path, speech: Audio
) -> None:
    question = spoken(models_dir, QUESTION)
    gap = np.zeros((1, speech.sample_rate), np.float32)
    one = np.concatenate([question.samples, gap, np.zeros_like(speech.samples)], axis=1)
    two = np.concatenate([np.zeros_like(question.samples), gap, speech.samples], axis=1)
    call = encode_audio(Audio(np.concatenate([two, one]), speech.sample_rate))
    turns = client().transcribe_audio_with_diarization(call, participants=["Bo", "Ann"], speaker_per_channel=True)
    assert [turn["speaker"] for turn in turns] == ["Ann", "Bo"]
    heard_right(turns[0]["text"], QUESTION)
    heard_right(turns[1]["text"])


# --- every recording --------------------------------------------------------------------------------------------------


def test_telephone_stereo_compressed_and_film_sound_are_understood(runtime: Runtime, speech: Audio) -> None:
    host = client()
    stereo = Audio(np.concatenate([speech.samples, 0.3 * speech.samples]), speech.sample_rate)
    frames = np.zeros((int(speech.duration_s * 5) + 1, 32, 32, 3), np.uint8)
    copies = {
        "8 kHz": encode_audio(resample(speech, 8000)),
        "stereo, FLAC": encode_audio(stereo, "flac"),
        "MP3 of 8 kHz": encode_audio(resample(speech, 8000), "mp3"),
        "Opus": encode_audio(speech, "opus"),
        "MP4": encode_video(frames, 5, audio=speech),
        "quiet": encode_audio(Audio(speech.samples * 0.02, speech.sample_rate)),
    }
    for name, data in copies.items():
        assert words(host.transcribe_audio(data)) == words(TEXT), name


def test_silence_and_a_hum_are_not_turned_into_words(runtime: Runtime) -> None:
    host = client()
    times = np.arange(20 * 16_000) / 16_000
    for samples in (np.zeros_like(times), 0.1 * np.sin(2 * np.pi * 50 * times)):
        sound = encode_audio(Audio(samples.astype(np.float32), 16_000))
        assert host.transcribe_audio(sound) == ""
        assert host.transcribe_audio(sound, output="vtt") == "WEBVTT\n"
        assert host.transcribe_audio_with_diarization(sound) == []


# --- together with others ---------------------------------------------------------------------------------------------


def test_two_clients_share_one_copy_and_unloading_in_one_does_not_break_the_other(runtime: Runtime, wav: bytes) -> None:
    first, second = client(), client()
    alone = first.transcribe_audio(wav)
    assert second.transcribe_audio(wav) == alone
    assert len(runtime.manager.snapshot()) == 1
    refused: list[bool] = []

    def unload_meanwhile(progress: dict[str, Any]) -> None:
        other = threading.Thread(target=lambda: refused.append(second.stt.unload_model()))
        other.start()
        other.join()

    assert first.transcribe_audio(wav, progress_callback=unload_meanwhile) == alone
    assert refused and not any(refused), "in use: nothing changes and the answer says so"
    assert second.stt.unload_model() is True
    assert runtime.manager.snapshot() == [] and not first.stt.has_active_resources()
    assert first.transcribe_audio(wav) == alone, "it comes back by itself"
    assert second.stt.get_loaded_models() == ["whisper-tiny.en"]


def test_progress_counts_seconds_and_cancel_stops_between_lines(runtime: Runtime, wav: bytes, speech: Audio) -> None:
    binding = client().stt
    seen: list[dict[str, Any]] = []
    before = binding.transcribe_audio(wav, progress_callback=seen.append)
    assert seen[-1]["completed"] == pytest.approx(speech.duration_s, abs=0.1) and seen[-1]["percentage"] == 100
    assert [row["completed"] for row in seen] == sorted(row["completed"] for row in seen)
    with pytest.raises(Cancelled):
        binding.transcribe_audio(wav, progress_callback=lambda progress: binding.cancel())
    with pytest.raises(Cancelled):
        binding.transcribe_audio(wav, cancelled=lambda: True)
    assert binding.transcribe_audio(wav) == before


# --- what is refused --------------------------------------------------------------------------------------------------


def bad_recordings(folder: Path, wav: bytes) -> dict[str, Any]:
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("Dear diary, nothing was recorded today.\n")
    (folder / "secret.wav").write_bytes(wav)
    (folder / "list.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    return {
        "no file": folder / "nothing.wav",
        "is empty": folder / "empty.wav",
        "holds text": folder / "text.wav",
        "holds text, not sound": folder / "list.wav",
        "no samples": encode_audio(Audio(np.zeros((1, 1), np.float32), 16_000))[:44],
        "is a folder": folder,
        "an address": "https://example.org/speech.wav",
        "No recording": None,
        "bare array": np.zeros(16_000, np.float32),
    }


def test_a_bad_recording_is_one_sentence_with_a_hint_and_loads_nothing(
    runtime: Runtime, wav: bytes, tmp_path: Path
) -> None:
    binding = client().stt
    assert binding.unload_model()
    for why, source in bad_recordings(tmp_path, wav).items():
        for verb in (binding.transcribe_audio, binding.transcribe, binding.transcribe_audio_with_diarization):
            with pytest.raises(MediaError, match=why) as refusal:
                verb(source)
            assert refusal.value.message.count(". ") == 0 and refusal.value.message.endswith(".")
            assert refusal.value.hint
    assert runtime.manager.snapshot() == []


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"language": "fr"}, "knows only English"),
        ({"language": "Klingon"}, "does not know the language"),
        ({"task": "translate"}, "cannot translate"),
        ({"output": "pdf"}, "output"),
        ({"beam_size": "many"}, "beam_size"),
        ({"temperature": 7}, "temperature"),
    ],
)
def test_a_wish_that_cannot_be_met_is_named(runtime: Runtime, wav: bytes, asked: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedRequest, match=why) as refusal:
        client().transcribe_audio(wav, **asked)
    assert refusal.value.hint


def test_errors_come_as_dictionaries_where_the_user_chose_that(runtime: Runtime, wav: bytes) -> None:
    host = client(error_mode="dict")
    answer: Any = host.transcribe_audio("/no/such/file.wav")
    assert answer == {
        "status": "error", "message": "There is no file '/no/such/file.wav'.", "hint": "Check the path.",
    }  # fmt: skip
    assert host.stt.get_last_error() == "There is no file '/no/such/file.wav'. Check the path."
    assert host.transcribe_audio_with_diarization(b"")["status"] == "error"
    heard_right(host.transcribe_audio(wav))


def test_a_model_that_is_not_here_names_the_command_and_near_names(runtime: Runtime, wav: bytes) -> None:
    binding = client().stt
    with pytest.raises(LocalModelError, match="lollms-local models download whisper-small --yes"):
        binding.transcribe_audio(wav, model="whisper-small")
    with pytest.raises(LocalModelError, match=r"whisper-tiny\.en"):
        binding.transcribe_audio(wav, model="whisper-tinny.en")
    heard_right(binding.transcribe_audio(wav))
