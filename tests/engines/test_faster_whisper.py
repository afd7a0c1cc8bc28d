"""faster-whisper: our transcripts are the plain library's, long files cost no more memory, damage is refused early."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import shutil
import struct
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device, cpu_threads
from lollms_local.engines import faster_whisper
from lollms_local.engines._whisper_features import BlockFeatures
from lollms_local.engines._whisper_pieces import recording_pieces
from lollms_local.engines.faster_whisper import BATCH_FROM_S, FasterWhisperTranscriber
from lollms_local.errors import (
    Cancelled,
    GenerationError,
    LoadError,
    MediaError,
    UnsupportedRequest,
)
from lollms_local.media import Audio, encode_audio, resample
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.transcription import Transcript, TranscriptionLoadOptions, TranscriptionOptions
from tests.spoken import TEXT, spoken, words
from tests.tiny.whisper import build_tiny_whisper

NAME = "whisper-tiny.en"
#: what a model of this size hears without doubt, and as good as no two words alike: repetition makes it try again
STORY = (
    "On Monday the doctor bought a new red car for his wife, because the old one had no heating.",
    "My sister lives in a small house near the station, with two dogs and a garden full of apples.",
    "Last summer thirty students from Canada visited our school and played football every afternoon.",
    "The museum opens at ten in the morning, and children under twelve do not have to pay for a ticket.",
)
SPEC = ModelSpec(id=NAME, modality="stt", engine="faster_whisper", source="path:whisper")
CPU = Device("cpu")
ROOM = 1 << 40


def load(path: Path, **options: Any) -> FasterWhisperTranscriber:
    asked = TranscriptionLoadOptions(**options)
    footprint = FasterWhisperTranscriber.footprint(SPEC, path, CPU, asked, ROOM)
    return FasterWhisperTranscriber.load(SPEC, path, CPU, asked, footprint)


def transcribe(
    engine: FasterWhisperTranscriber, audio: Any, control: Control | None = None, **wishes: Any
) -> Transcript:
    """One hypothesis at a time unless asked otherwise: half the work."""
    options = TranscriptionOptions(**{"beam_size": 1, **wishes})
    return engine.transcribe(audio, options, control or Control())


@pytest.fixture(scope="module")
def engine(models_dir: Path) -> Iterator[FasterWhisperTranscriber]:
    loaded = load(models_dir / NAME, max_batch_size=4)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def speech(models_dir: Path) -> Audio:
    """At Whisper's own rate and within full scale: what the library gets is then what we were given, to the bit."""
    return at_16_khz(spoken(models_dir))


@pytest.fixture(scope="module")
def story(models_dir: Path) -> Audio:
    """Half a minute without a long pause."""
    return at_16_khz(spoken(models_dir, " ".join(STORY)))


@pytest.fixture(scope="module")
def minute(story: Audio, speech: Audio) -> Audio:
    """More than a minute, half of it silence: two windows of Whisper's, and long enough for batches."""
    silence = np.zeros((1, 16_000 * 36), np.float32)
    return Audio(np.concatenate([story.samples, silence, speech.samples], axis=1), 16_000)


def at_16_khz(audio: Audio) -> Audio:
    return Audio(resample(audio, 16_000).samples * np.float32(0.9), 16_000)


@pytest.fixture(scope="module")
def plain(models_dir: Path) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(
        str(models_dir / NAME), device="cpu", compute_type="int8", cpu_threads=cpu_threads(), local_files_only=True
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_whisper(tmp_path_factory.mktemp("tiny") / "whisper")


@pytest.fixture(scope="module")
def multilingual(tiny: Path) -> Iterator[FasterWhisperTranscriber]:
    loaded = load(tiny, compute_type="float32")
    yield loaded
    loaded.close()


# --- the same as the library ------------------------------------------------------------------------------------------


def rows(found: Any) -> list[Any]:
    """All that both say about a transcript: the library's segments or ours."""
    if isinstance(found, Transcript):
        return [
            (s.start_s, s.end_s, s.text, s.avg_logprob, [(w.start_s, w.end_s, w.text, w.probability) for w in s.words])
            for s in found.segments
        ]
    return [
        (
            round(s.start, 3),
            round(s.end, 3),
            s.text.strip(),
            s.avg_logprob,
            [(round(w.start, 3), round(w.end, 3), w.word.strip(), w.probability) for w in s.words or ()],
        )
        for s in found[0]
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"beam_size": 5}, {}),
        ({"word_timestamps": True}, {"beam_size": 1, "word_timestamps": True}),
        ({"vad_filter": False, "temperature": 0.0}, {"beam_size": 1, "vad_filter": False, "temperature": 0.0}),
        ({"initial_prompt": "Fox.", "hotwords": "dog"}, {"beam_size": 1, "initial_prompt": "Fox.", "hotwords": "dog"}),
    ],
)  # fmt: skip
def test_text_times_and_probabilities_are_the_library_s(
    engine: FasterWhisperTranscriber, plain: Any, speech: Audio, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    found = transcribe(engine, speech, **ours)
    assert rows(found) == rows(plain.transcribe(speech.samples[0], **{"vad_filter": True, **theirs}))
    assert words(found.text) == words(TEXT)


def test_a_minute_is_the_library_s_minute_and_so_is_a_minute_in_batches(
    engine: FasterWhisperTranscriber, plain: Any, minute: Audio
) -> None:
    from faster_whisper import BatchedInferencePipeline

    assert minute.duration_s > BATCH_FROM_S
    same = {"beam_size": 1, "temperature": 0.0}  # a second try draws lots
    one = transcribe(engine, minute, temperature=0.0, batch_size=1)
    assert rows(one) == rows(plain.transcribe(minute.samples[0], vad_filter=True, **same))
    batched = transcribe(engine, minute, temperature=0.0, batch_size=4)
    theirs = BatchedInferencePipeline(plain).transcribe(
        minute.samples[0], batch_size=4, word_timestamps=True, vad_parameters={"min_silence_duration_ms": 160}, **same
    )
    theirs = list(theirs[0])
    spoken_words = [word for segment in theirs for word in segment.words]
    assert batched.text == "".join(segment.text for segment in theirs).strip()
    assert [w for s in batched.segments for w in s.text.split()] == [w.word.strip() for w in spoken_words]
    starts = {round(word.start, 3) for word in spoken_words}
    assert {segment.start_s for segment in batched.segments} <= starts
    assert all(s.end_s - s.start_s <= 7 and len(s.text) <= 84 and not s.words for s in batched.segments)
    for found in (one, batched):
        heard, said = set(words(found.text)), set(words(" ".join([*STORY, TEXT])))
        assert len(heard & said) > 0.9 * len(said)
        assert found.segments[-1].end_s == pytest.approx(minute.duration_s, abs=2)


def test_a_recording_of_several_pieces_loses_no_word_and_keeps_its_time(
    engine: FasterWhisperTranscriber, story: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transcribe(engine, story, temperature=0.0, word_timestamps=True)
    monkeypatch.setattr("lollms_local.engines._whisper_pieces.PIECE_S", 24.0)
    told: list[Progress] = []
    pieces = transcribe(engine, story, Control(on_progress=told.append), temperature=0.0, word_timestamps=True)
    heard, said = words(pieces.text), set(words(" ".join(STORY)))
    assert len(set(heard) & said) > 0.9 * len(said)
    assert len(heard) == pytest.approx(len(words(whole.text)), abs=3), "nothing is said twice"
    starts = [w.start_s for s in pieces.segments for w in s.words]
    assert starts == sorted(starts)
    for word in ("doctor", "sister", "students", "museum"):
        (first,), (second,) = (
            [w.start_s for s in found.segments for w in s.words if word in w.text.lower()] for found in (whole, pieces)
        )
        assert second == pytest.approx(first, abs=0.5)
    assert (pieces.duration_s, told[-1].done) == (pytest.approx(story.duration_s), pytest.approx(story.duration_s))


@pytest.mark.parametrize("mels", [80, 128])
def test_the_spectrogram_in_blocks_is_the_library_s_to_the_bit(mels: int) -> None:
    from faster_whisper.feature_extractor import FeatureExtractor

    library = FeatureExtractor(feature_size=mels)
    rng = np.random.default_rng(mels)
    for samples in (16_000 * 5, 16_000 * 61 + 77, 16_000 * 93):
        sound = rng.uniform(-1, 1, samples).astype(np.float32)
        assert np.array_equal(BlockFeatures(library)(sound), library(sound))


def test_words_are_timed_in_order_and_near_where_they_are_said(engine: FasterWhisperTranscriber, speech: Audio) -> None:
    silence = np.zeros((1, 3 * 16_000), np.float32)
    later = Audio(np.concatenate([silence, speech.samples], axis=1), 16_000)
    first, second = (
        [w for s in transcribe(engine, sound, word_timestamps=True).segments for w in s.words]
        for sound in (speech, later)
    )
    assert [w.text.lower().strip(",.") for w in first][:4] == ["the", "quick", "brown", "fox"]
    assert all(a.end_s <= b.start_s + 0.05 for a, b in itertools.pairwise(first))
    assert next(w for w in second if "fox" in w.text).start_s == pytest.approx(
        next(w for w in first if "fox" in w.text).start_s + 3, abs=0.4
    )


def test_threads_at_the_same_time_hear_what_each_hears_alone(engine: FasterWhisperTranscriber, speech: Audio) -> None:
    slow = Audio(speech.samples[:, : 16_000 * 3], 16_000)
    sounds = [speech, slow, speech]
    alone = [rows(transcribe(engine, sound)) for sound in sounds]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda sound: rows(transcribe(engine, sound)), sounds))
    assert together == alone


def test_the_language_is_detected_when_it_is_not_said(
    multilingual: FasterWhisperTranscriber, tiny: Path, speech: Audio
) -> None:
    from faster_whisper import WhisperModel

    assert multilingual.is_multilingual
    found = transcribe(multilingual, speech, temperature=0.0)
    plain = WhisperModel(str(tiny), device="cpu", compute_type="float32", local_files_only=True)
    _, info = plain.transcribe(speech.samples[0], beam_size=1, temperature=0.0, vad_filter=True)
    assert (found.language, found.language_probability) == (info.language, info.language_probability)
    assert 0 < found.language_probability < 1
    for said in ("fr", "French", "fr-FR", "FR_fr"):
        asked = transcribe(multilingual, speech, language=said, temperature=0.0)
        assert (asked.language, asked.language_probability) == ("fr", 1.0)
    with pytest.raises(UnsupportedRequest, match="Klingon"):
        transcribe(multilingual, speech, language="Klingon")
    into_english = transcribe(multilingual, speech, language="fr", task="translate", temperature=0.0)
    assert rows(into_english) == rows(
        plain.transcribe(
            speech.samples[0], language="fr", task="translate", beam_size=1, temperature=0.0, vad_filter=True
        )
    )


def test_an_english_model_refuses_what_it_cannot(engine: FasterWhisperTranscriber, speech: Audio) -> None:
    assert not engine.is_multilingual
    for wishes in ({"language": "fr"}, {"task": "translate"}):
        with pytest.raises(UnsupportedRequest, match="knows only English") as refusal:
            transcribe(engine, speech, **wishes)
        assert "models list --modality stt" in refusal.value.hint
    assert transcribe(engine, speech, language="en-GB").language == "en"


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_cancel_between_lines_stops_at_once_and_the_next_call_is_right(
    engine: FasterWhisperTranscriber, minute: Audio, speech: Audio
) -> None:
    before = rows(transcribe(engine, speech))
    told: list[Progress] = []
    with pytest.raises(Cancelled):
        stopping = Control(cancelled=lambda: len(told) > 0, on_progress=told.append)
        transcribe(engine, minute, stopping, batch_size=1)
    assert len(told) == 1 and 0 < told[0].done < 40 and told[0].unit == "s"
    assert rows(transcribe(engine, speech)) == before


def test_an_error_in_the_caller_s_progress_reaches_the_caller(engine: FasterWhisperTranscriber, speech: Audio) -> None:
    def tell(progress: Progress) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        transcribe(engine, speech, Control(on_progress=tell))


def test_closing_frees_the_weights_though_somebody_still_holds_the_model(models_dir: Path, speech: Audio) -> None:
    loaded = load(models_dir / NAME)
    inner = loaded._model
    assert inner is not None and inner.model.model_is_loaded
    loaded.close()
    loaded.close()
    assert not inner.model.model_is_loaded
    with pytest.raises(GenerationError, match="is closed"):
        transcribe(loaded, speech)


# --- recordings -------------------------------------------------------------------------------------------------------


def wav_of(samples: Any, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, len(samples), "NONE", ""))
        out.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


def test_silence_noise_and_clicks_give_no_invented_words(engine: FasterWhisperTranscriber) -> None:
    rng = np.random.default_rng(0)
    click = np.zeros(16_000 * 5, np.float32)
    click[::16_000] = 1
    for samples in (np.zeros(16_000 * 40), rng.normal(0, 0.01, 16_000 * 10), click, np.zeros(1)):
        found = transcribe(engine, Audio(samples.astype(np.float32), 16_000))
        assert (found.text, found.segments, found.language) == ("", (), "")
        assert found.duration_s == pytest.approx(len(samples) / 16_000)


def test_samples_beyond_full_scale_are_clipped_and_do_not_derail_it(
    engine: FasterWhisperTranscriber, speech: Audio
) -> None:
    loud = Audio(np.clip(speech.samples * 3, -1, 1), 16_000)
    broken = loud.samples.copy()
    broken[0, 100] = 1e30
    found = transcribe(engine, Audio(broken, 16_000))
    assert words(found.text) == words(TEXT)


def test_half_of_an_mp3_gives_the_words_of_that_half(engine: FasterWhisperTranscriber, speech: Audio) -> None:
    data = encode_audio(speech, "mp3")
    heard = words(transcribe(engine, data[: len(data) // 2]).text)
    assert heard[:4] == words(TEXT)[:4] and "river" not in heard


FLOAT_WAV_OF_NAN = (
    b"RIFF" + struct.pack("<I", 36 + 6400) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    + b"data" + struct.pack("<I", 6400) + np.full(1600, np.nan, "<f4").tobytes()
)  # fmt: skip
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"


@pytest.mark.parametrize(
    ("audio", "why"),
    [
        (b"", "is empty"),
        (b"Dear diary, today nothing was recorded.", "holds text"),
        (b"ffconcat version 1.0\nfile secret.wav\n", "holds text"),
        (SDP, "holds text"),
        (FLOAT_WAV_OF_NAN, "not finite"),
        (wav_of([]), "no samples"),
        (np.zeros((16_000, 2), np.float32), "bare array"),
        ("/no/such/file.wav", "no file"),
        ("rtp://127.0.0.1:5004", "an address"),
    ],
    ids=["empty", "text", "ffconcat", "sdp", "nan", "no samples", "array", "missing", "address"],
)
def test_what_is_no_sound_is_refused_in_one_sentence(
    engine: FasterWhisperTranscriber,
    audio: Any,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speech: Audio,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(encode_audio(speech))
    sources = [audio]
    if isinstance(audio, bytes):
        (tmp_path / "speech.wav").write_bytes(audio)
        sources.append(tmp_path / "speech.wav")
    for source in sources:
        with pytest.raises(MediaError, match=why) as refusal:
            transcribe(engine, source)
        assert refusal.value.hint and refusal.value.message.count(". ") == 0


class TenHours(io.RawIOBase):
    """A WAV file of ten hours that is nowhere: its samples are made as they are read."""

    seconds = 36_000

    def __init__(self) -> None:
        size = self.seconds * 16_000
        self.head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt "
        self.head += struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16) + b"data" + struct.pack("<I", size)
        self.at, self.size, self.furthest = 0, size + 44, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def read(self, count: int = -1) -> bytes:
        count = max(0, min(count if count >= 0 else self.size, self.size - self.at))
        data = (self.head[self.at : self.at + count] + bytes(count))[:count]
        self.at += count
        self.furthest = max(self.furthest, self.at)
        return data


def test_ten_hours_are_read_piece_by_piece(engine: FasterWhisperTranscriber) -> None:
    file = TenHours()
    pieces = recording_pieces(file)  # type: ignore[arg-type]
    first = next(pieces)
    pieces.close()
    assert 570 <= first.duration_s <= 600
    assert file.furthest < file.size / 20, "the rest is not read before it is needed"
    told: list[Progress] = []
    with pytest.raises(Cancelled):
        transcribe(engine, TenHours(), Control(cancelled=lambda: len(told) > 0, on_progress=told.append))
    assert told[0].total == pytest.approx(36_000, abs=1)


# --- damaged models ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reached the native library; it still loads."""
    import faster_whisper

    opened: list[str] = []
    real = faster_whisper.WhisperModel

    def opening(path: str, **settings: Any) -> Any:
        opened.append(path)
        return real(path, **settings)

    monkeypatch.setattr(faster_whisper, "WhisperModel", opening)
    return opened


class Touch:
    """A pickle that would leave a trace if anybody read it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused_and_nothing_is_fetched_for_it(
    copy: Path, name: str, native: list[str]
) -> None:
    (copy / name).unlink()
    with pytest.raises(LoadError, match=name) as refusal:
        load(copy)
    assert refusal.value.hint and not native


def test_damaged_weights_never_reach_the_native_library(copy: Path, native: list[str], tmp_path: Path) -> None:
    model = copy / "model.bin"
    whole = model.read_bytes()
    trace = tmp_path / "executed"
    damaged = {
        "empty": b"",
        "three bytes": whole[:3],
        "half": whole[: len(whole) // 2],
        "one byte short": whole[:-1],
        "one byte more": whole + b"\0",
        "zeros": bytes(len(whole)),
        "another version": struct.pack("<I", 99) + whole[4:],
        "another kind": whole.replace(b"WhisperSpec", b"MarianMSpec", 1),
        "a name's length": whole[:4] + b"\xff\xff" + whole[6:],
        "safetensors": struct.pack("<Q", 2) + b"{}",
        "a pickle": pickle.dumps(Touch(trace)),
        "a zip": b"PK\x03\x04" + bytes(100),
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 75537502\n",
    }
    for name, data in damaged.items():
        model.write_bytes(data)
        with pytest.raises(LoadError) as refusal:
            load(copy)
        assert refusal.value.hint, name
    assert native == [] and not trace.exists()
    model.write_bytes(whole)
    load(copy).close()
    assert native == [str(copy)], "the whole one loads"


def test_a_folder_that_the_library_refuses_is_a_load_error(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(LoadError):
        load(copy)
    (copy / "config.json").write_text(json.dumps({}))
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError):
        load(copy)


def test_what_is_no_folder_of_a_model_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(LoadError, match="not a folder"):
            load(path)


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def not_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster_whisper, "cpu_is_intel", lambda: False)


@pytest.mark.usefixtures("not_intel")
def test_the_predicted_weights_are_the_bytes_that_the_arithmetic_needs(models_dir: Path) -> None:
    sizes = {}
    for compute_type in ("int8", "float32"):
        options = TranscriptionLoadOptions(compute_type=compute_type)
        found = FasterWhisperTranscriber.footprint(SPEC, models_dir / NAME, CPU, options, ROOM)
        sizes[compute_type] = found.weights_bytes
        assert compute_type in found.reason and found.placement.compute_type == compute_type
    file = (models_dir / NAME / "model.bin").stat().st_size  # float16
    assert sizes["float32"] == pytest.approx(2 * file, rel=0.01)
    assert 0.5 * file < sizes["int8"] < 0.6 * file


def test_on_intel_s_processors_the_packed_word_table_is_counted(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(compute_type: str, intel: bool) -> int:
        monkeypatch.setattr(faster_whisper, "cpu_is_intel", lambda: intel)
        options = TranscriptionLoadOptions(compute_type=compute_type)
        return FasterWhisperTranscriber.footprint(SPEC, models_dir / NAME, CPU, options, ROOM).weights_bytes

    table = 51_864 * 384
    for compute_type, width in (("int8", 1), ("float32", 4)):
        assert weights(compute_type, True) - weights(compute_type, False) == int(1.3 * table * width)


@pytest.mark.usefixtures("not_intel")
def test_memory_is_kept_for_the_batch_that_is_asked_for_or_the_one_that_fits(models_dir: Path) -> None:
    def found(room: int = ROOM, **options: Any) -> Any:
        asked = TranscriptionLoadOptions.merge(options)
        return FasterWhisperTranscriber.footprint(SPEC, models_dir / NAME, CPU, asked, room)

    alone, eight = found(), found(batch_size="8")
    assert (alone.placement.batch_size, eight.placement.batch_size) == (1, 8)
    assert alone.total_bytes < 400 << 20 < eight.total_bytes, "on a CPU memory is not spent on speed unasked"
    tight = found(room=520 << 20, max_batch_size=8)
    assert tight.placement.batch_size == 4 and "batches of 4" in tight.reason
    assert tight.total_bytes <= 520 << 20


def test_a_call_never_takes_a_larger_batch_than_memory_is_kept_for(engine: FasterWhisperTranscriber) -> None:
    def batch(duration_s: float = 600.0, **wishes: Any) -> int:
        return engine._batch_size(TranscriptionOptions(**wishes), duration_s)

    assert [batch(batch_size=n) for n in (0, 1, 3, 64)] == [4, 1, 3, 4]
    assert batch(batch_size=4, vad_filter=False) == batch(duration_s=59.0) == 1
