"""local_tts inside the real host: the real voice is understood by the real Whisper, in every form a caller uses."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lollms_client import LollmsClient
from lollms_client.lollms_personality.lollms_personality import BindingToolsBuilder

from lollms_local.client import connect
from lollms_local.errors import Cancelled, LocalModelError, ModelNotDownloaded, UnsupportedRequest
from lollms_local.media import Audio, decode_audio
from lollms_local.runtime import Runtime
from tests.tiny.bark import build_bark

VOICE = "piper-en-us-joe-medium"
LINE = "The first sentence is short."
TEXT = f"{LINE} The second one is a little longer, by a few words! Is this the third?"

#: what is said, with numbers, names and questions; the last two are paragraphs
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "In the morning we walked along the river.",
    "Where did the old captain hide his silver watch?",
    "She sold 25 apples and 3 plums on Monday.",
    "The train leaves at 7 and arrives at 12.",
    "There are 365 days in a year.",
    "Robert and Alice met Doctor Brown in London.",
    "My friend David lives in New York with his sister Emma.",
    "How many people came to the meeting yesterday?",
    "What time does the library open on Saturday?",
    "Could you please close the window before you leave?",
    "The answer is 42, but nobody knows the question.",
    "He paid 18 dollars for a ticket to Chicago.",
    "Michael told Sarah that the dinner was ready.",
    "Please write your name at the top of the page.",
    "Do you remember the summer we spent in Italy?",
    "Water boils at 100 degrees and freezes at 0.",
    "The committee will publish its report in September.",
    "The village lay quiet under the snow. Smoke rose from the chimneys, and a dog barked somewhere far away. "
    "Anna pulled her coat closer and walked on towards the church, where the lights were still burning. "
    "She had not seen her brother for ten years, and she wondered whether he would know her face.",
    "A good garden needs patience more than money. In the spring you dig the soil and plant the seeds. "
    "In the summer you carry water every evening, and you learn the names of the insects. "
    "By the autumn there is food on the table, and you have forgotten how much your back was hurting.",
)
NUMBERS = {
    "0": "zero", "3": "three", "7": "seven", "10": "ten", "12": "twelve", "18": "eighteen", "25": "twenty five",
    "42": "forty two", "100": "one hundred", "365": "three hundred and sixty five",
}  # fmt: skip


@pytest.fixture(scope="module")
def bark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bark(tmp_path_factory.mktemp("models") / "tiny-bark", tokens=6)


def client(**config: Any) -> LollmsClient:
    return LollmsClient(llm_binding_name="", tts_binding_name="local_tts", tts_binding_config=config, debug=False)


def words(text: str) -> list[str]:
    """Lower case, numbers as words, no punctuation."""
    plain = text.lower().replace("dr.", "doctor").replace("$", "")
    plain = re.sub(r"\d+", lambda m: f" {NUMBERS.get(m.group(), m.group())} ", plain)
    return [w for w in re.findall(r"[a-z0-9']+", plain) if w not in ("and", "dollars")]


def word_errors(said: list[str], heard: list[str]) -> int:
    """Edit distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def heard(data: bytes) -> Audio:
    """What a player would play; it must be a sound that can be heard."""
    audio = decode_audio(data)
    assert float(np.abs(audio.samples).max()) > 0.05
    return audio


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(400)  # two minutes of speech, spoken and written down: 25 s of one core
def test_what_the_voice_says_is_understood_word_for_word(runtime: Runtime) -> None:
    still = {"noise_scale": 0, "noise_w_scale": 0}  # the same sound on every run
    host = LollmsClient(
        llm_binding_name="",
        tts_binding_name="local_tts",
        tts_binding_config=still,
        stt_binding_name="local_stt",
        debug=False,
    )
    said = errors = 0
    for text in SENTENCES:
        wrote = host.transcribe_audio(host.generate_audio(text))
        said += len(words(text))
        errors += word_errors(words(text), words(wrote))
    assert len(SENTENCES) == 20 and said > 250
    assert errors / said <= 0.08, f"{errors} of {said} words"


def test_with_nothing_configured_the_starter_voice_speaks_wav_at_once(runtime: Runtime) -> None:
    host = client()
    assert runtime.manager.snapshot() == [], "nothing is loaded before it is needed"
    for speak in (host.generate_audio, host.generate_speech, host.tts.generate_audio):
        data = speak(LINE, seed=3)
        assert data[:4] == b"RIFF" and data[8:12] == b"WAVE"
        assert 1.0 < heard(data).duration_s < 4.0
    assert host.tts.get_loaded_models() == [VOICE]
    with av.open(io.BytesIO(data)) as file:
        assert file.metadata["comment"] == f"model={VOICE}; voice={VOICE}; seed=3"
    assert heard(connect(speech=True, llm_binding_name="").generate_audio(LINE)).sample_rate == 22050


def test_the_personality_s_tool_writes_a_wav_file(runtime: Runtime, tmp_path: Path) -> None:
    tool = BindingToolsBuilder._make_tts_tool(client().tts, tmp_path)
    answer = tool["callable"](LINE, file_name="hello")
    assert answer["success"], answer
    assert heard((tmp_path / "hello.wav").read_bytes()).sample_rate == 22050
    refused = tool["callable"](LINE, voice="nobody")
    assert refused["success"] is False and "nobody" in refused["error"]


# --- wishes -----------------------------------------------------------------------------------------------------------


def test_what_front_ends_pass_along_is_understood_or_ignored(runtime: Runtime) -> None:
    speak = client(noise_scale=0, noise_w_scale="0").generate_audio
    plain = speak(LINE)
    for asked in (
        {"language": "en"}, {"language": "en-US"}, {"language": None}, {"voice": ""}, {"voice": None, "model": None},
        {"voice": "None", "model": ""}, {"speed": "1.0", "model": VOICE}, {"voice": VOICE}, {"voice": f"{VOICE}#0"},
        {"speaker": "0"}, {"unknown": object(), "stream": False, "seed": "-1"},
    ):  # fmt: skip
        assert np.array_equal(heard(speak(LINE, **asked)).samples, heard(plain).samples), asked


def test_speed_from_the_call_or_the_configuration_changes_the_length(runtime: Runtime) -> None:
    normal, twice, half = (heard(client().generate_audio(TEXT, speed=s)).duration_s for s in (1, "2", 0.5))
    assert twice < 0.75 * normal and half > 1.4 * normal
    configured = client(speed="2")
    assert heard(configured.generate_audio(TEXT)).duration_s < 0.75 * normal
    assert heard(configured.generate_audio(TEXT, speed=1)).duration_s > 0.8 * normal, "the call wins"


@pytest.mark.parametrize(
    ("form", "container", "codec"),
    [
        ("wav", "wav", "pcm_s16le"), ("flac", "flac", "flac"), ("mp3", "mp3", "mp3"), ("ogg", "ogg", "opus"),
        ("opus", "ogg", "opus"),
    ],
)  # fmt: skip
def test_every_format_is_what_it_says_and_sounds_the_same(
    runtime: Runtime, form: str, container: str, codec: str
) -> None:
    speak = client(noise_scale=0, noise_w_scale=0).generate_audio
    data = speak(LINE, format=form)
    with av.open(io.BytesIO(data)) as file:
        assert container in file.format.name.split(",")
        assert codec in file.streams.audio[0].codec_context.name
    plain = heard(speak(LINE))
    assert heard(data).duration_s == pytest.approx(plain.duration_s, abs=0.1)
    level = float(np.sqrt((heard(data).samples ** 2).mean()))
    assert level == pytest.approx(float(np.sqrt((plain.samples**2).mean())), rel=0.1)


def test_same_seed_same_file_and_normalise_raises_the_peak(runtime: Runtime) -> None:
    speak = client().generate_audio
    assert speak(LINE, seed=4) == speak(LINE, seed=4) != speak(LINE, seed=5)
    assert float(np.abs(heard(speak(LINE, normalise="true")).samples).max()) == pytest.approx(0.97, abs=0.001)


# --- voices -----------------------------------------------------------------------------------------------------------


def test_every_listed_voice_finds_its_model(runtime: Runtime) -> None:
    binding = client().tts
    names = binding.list_voices()
    assert names[0] == VOICE and "v2/de_speaker_3" in names and len(names) == len(set(names))
    assert VOICE in binding.list_models() and "bark-small" in binding.list_models()
    with pytest.raises(ModelNotDownloaded, match="bark-small"):
        binding.generate_audio(LINE, voice="v2/de_speaker_3")
    assert binding.spec("v2/de_speaker_3").engine == "bark"


def test_a_voice_may_stand_where_a_model_is_named(runtime: Runtime, bark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copytree(bark, folder / "my-bark")
    shutil.copytree(runtime.models_dir / VOICE, folder / "my-voice")
    config = {"models_path": str(folder)}
    chosen = client(**config, model_name="v2/de_speaker_1")
    assert chosen.tts.get_loaded_models() == ["my-bark"], "named, so the host loads it"
    with av.open(io.BytesIO(chosen.generate_audio("Hallo.", seed=1))) as file:
        assert file.metadata["comment"] == "model=my-bark; voice=v2/de_speaker_1; seed=1"
    by_voice = client(**config, voice="v2/de_speaker_1")
    assert by_voice.generate_audio("Hallo.", seed=1) == chosen.generate_audio("Hallo.", seed=1)
    assert by_voice.generate_audio("Hallo.", voice="my-bark", seed=1)[:4] == b"RIFF"
    assert heard(by_voice.generate_audio(LINE, voice="my-voice")).sample_rate == 22050
    assert heard(by_voice.generate_audio(LINE, model="my-voice")).sample_rate == 22050, "the configured voice is Bark's"
    assert set(by_voice.tts.list_voices()) >= {"my-voice", "v2/de_speaker_1", "v2/en_speaker_6"}


def test_a_bark_by_path_speaks_with_its_own_voices(runtime: Runtime, bark: Path) -> None:
    host = client(model_name=str(bark))
    one, other = (host.generate_audio("Hello there.", voice=v, seed="5") for v in (None, "v2/en_speaker_3"))
    assert heard(one).sample_rate == heard(other).sample_rate == 24_000
    assert one != other == host.generate_audio("Hello there.", voice="en_speaker_3", seed=5)
    german = host.generate_audio("Hallo.", language="de", seed=5)
    with av.open(io.BytesIO(german)) as file:
        assert "voice=v2/de_speaker_1" in file.metadata["comment"]
    assert host.tts.unload_model() and host.generate_audio("Hello there.", seed=5) == one


# --- piece by piece ---------------------------------------------------------------------------------------------------


def test_the_first_piece_is_the_first_sentence_and_all_pieces_are_the_text(runtime: Runtime) -> None:
    binding = client(noise_scale=0, noise_w_scale=0).tts
    seen: list[dict[str, Any]] = []
    stream = binding.stream_audio(TEXT, progress_callback=seen.append)
    first = heard(next(stream))
    assert [row["completed"] for row in seen] == [0] and seen[0]["total"] == 3, "the second is not begun"
    rest = [heard(piece) for piece in stream]
    alone = heard(binding.generate_audio(LINE))
    assert np.array_equal(first.samples[:, : alone.samples.shape[1]], alone.samples)
    assert len(rest) == 2
    whole = heard(binding.generate_audio(TEXT))
    last_pause = round(0.5 * whole.sample_rate)  # a player that goes on needs it, the whole does not
    joined = np.concatenate([first.samples, *(piece.samples for piece in rest)], axis=1)[:, :-last_pause]
    assert joined.shape == whole.samples.shape
    assert float(np.abs(joined - whole.samples).max()) < 0.05, "but for 5 ms of fading at the joins"


def test_a_stream_that_is_left_gives_the_model_back(runtime: Runtime) -> None:
    binding = client().tts
    stream = binding.stream_audio(TEXT)
    next(stream)
    assert binding.unload_model() is False, "in use"
    stream.close()
    assert binding.unload_model() is True and runtime.manager.snapshot() == []


def test_cancel_stops_between_sentences_and_the_next_call_is_right(runtime: Runtime) -> None:
    binding = client().tts
    with pytest.raises(Cancelled):
        binding.generate_audio(TEXT, progress_callback=lambda p: binding.cancel() if p["completed"] == 1 else None)
    stream = binding.stream_audio(TEXT)
    next(stream)
    binding.cancel()
    with pytest.raises(Cancelled):
        next(stream)
    with pytest.raises(Cancelled):
        binding.generate_audio(TEXT, cancelled=lambda: True)
    assert heard(binding.generate_audio(LINE)).duration_s > 1


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked", "why"),
    [
        ("", {}, "no text"),
        (" \n ", {}, "no text"),
        (None, {}, "no text"),
        ("... --- ...", {}, "nothing in this text"),
        (LINE, {"voice": "nobody"}, "'nobody' is not known"),
        (LINE, {"voice": "/recordings/me.wav"}, "not known"),
        (LINE, {"voice": f"{VOICE}#bob"}, "no speaker 'bob'"),
        (LINE, {"speaker": "4"}, "no speaker '4'"),
        (LINE, {"language": "fr"}, "speaks en, not fr"),
        (LINE, {"speed": 9}, "speed"),
        (LINE, {"format": "aiff"}, "format"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_sentence_with_a_hint(
    runtime: Runtime, text: Any, asked: dict[str, Any], why: str
) -> None:
    host = client()
    with pytest.raises(UnsupportedRequest, match=why) as refusal:
        host.generate_audio(text, **asked)
    assert refusal.value.message.endswith(".") and refusal.value.message.count(". ") == 0
    assert refusal.value.hint and host.tts.get_last_error().startswith(refusal.value.message)
    with pytest.raises(UnsupportedRequest, match=why):
        list(host.tts.stream_audio(text, **asked))


def test_errors_come_as_dictionaries_where_the_user_chose_that(runtime: Runtime) -> None:
    host = client(error_mode="dict")
    answer: Any = host.generate_audio("")
    assert answer == {"status": "error", "message": "There is no text to speak.", "hint": "Give at least one word."}
    assert host.tts.stream_audio("") == answer
    assert heard(host.generate_audio(LINE)).duration_s > 1


def test_a_model_that_is_not_here_names_the_command_and_near_names(runtime: Runtime) -> None:
    binding = client().tts
    with pytest.raises(LocalModelError, match="lollms-local models download bark-small --yes"):
        binding.generate_audio(LINE, model="bark-small")
    with pytest.raises(LocalModelError, match="piper-en-us-joe-medium"):
        binding.generate_audio(LINE, model="piper-en-us-jo-medium")
    assert heard(binding.generate_audio(LINE)).duration_s > 1


def test_settings_can_be_read_and_changed_and_hold_from_the_next_call(runtime: Runtime) -> None:
    binding = client().tts
    before = heard(binding.generate_audio(TEXT)).duration_s
    assert binding.get_settings()["speed"] == 1.0
    assert binding.set_settings({"speed": "2"}) is True
    assert heard(binding.generate_audio(TEXT)).duration_s < 0.75 * before
    assert binding.set_settings({"speed": "fast"}) is False and binding.get_settings()["speed"] == 2.0
