"""Sound: what goes in comes out, and nothing else is opened on the way."""

from __future__ import annotations

import io
import socket
import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from lollms_local.errors import MediaError
from lollms_local.media import (
    Audio,
    audio_duration_s,
    check_audio,
    decode_audio,
    encode_audio,
    encode_video,
    iter_audio,
    resample,
    write_file,
)

RATE = 24_000


def tone(seconds: float = 1.0, rate: int = RATE, channels: int = 1, level: float = 0.5) -> Audio:
    times = np.arange(int(seconds * rate)) / rate
    return Audio(np.stack([level * np.sin(2 * np.pi * 440 * (i + 1) * times) for i in range(channels)]), rate)


def loudest_hz(audio: Audio) -> float:
    spectrum = np.abs(np.fft.rfft(audio.samples[0]))
    return float(np.fft.rfftfreq(audio.samples.shape[1], 1 / audio.sample_rate)[spectrum.argmax()])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", ["wav", "flac"])
def test_lossless_formats_give_the_16_bit_samples_back_exactly(form: str, channels: int) -> None:
    rounded = np.rint(tone(channels=channels).samples * 32768) / 32768
    found = decode_audio(encode_audio(Audio(rounded, RATE), form))
    assert found.sample_rate == RATE
    assert np.array_equal(found.samples, rounded.astype(np.float32))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", ["mp3", "ogg", "opus"])
def test_lossy_formats_keep_pitch_length_and_channels(form: str, channels: int) -> None:
    found = decode_audio(encode_audio(tone(channels=channels), form))
    assert found.channels == channels
    assert abs(found.duration_s - 1.0) < 0.06
    assert abs(loudest_hz(found) - 440) < 3


def test_wav_is_read_by_the_standard_library_with_its_tags_in_it() -> None:
    data = encode_audio(tone(channels=2), metadata={"title": "Tön", "seed": "7"})
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, RATE)
        assert file.getnframes() == RATE
    assert "Tön".encode() in data and b"seed=7" in data


def test_full_scale_and_beyond_never_wraps_around() -> None:
    loud = Audio(tone().samples * 8, RATE)
    found = decode_audio(encode_audio(loud)).samples
    assert np.abs(found).max() == pytest.approx(1, abs=1e-3)
    assert np.corrcoef(found[0], loud.samples[0])[0, 1] > 0.9999
    square = Audio(np.tile(np.array([1.0, -1.0], np.float32), 100), RATE)
    assert np.array_equal(np.sign(decode_audio(encode_audio(square)).samples), np.sign(square.samples))


def test_normalise_raises_the_peak_and_leaves_silence_alone() -> None:
    assert np.abs(decode_audio(encode_audio(tone(level=0.01), normalise=True)).samples).max() > 0.96
    assert not decode_audio(encode_audio(Audio(np.zeros(100, np.float32), RATE), normalise=True)).samples.any()


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    found = resample(tone(), rate)
    assert found.sample_rate == rate
    assert abs(found.samples.shape[1] - rate) <= 2
    assert abs(loudest_hz(found) - 440) < 2
    assert resample(found, rate) is found


def test_mono_is_the_mean_of_the_channels() -> None:
    stereo = tone(channels=2)
    found = decode_audio(stereo, mono=True)
    assert np.allclose(found.samples[0], stereo.samples.mean(axis=0), atol=1e-6)


def test_paths_bytes_file_objects_and_a_films_sound_are_the_same_sound(tmp_path: Path) -> None:
    data = encode_audio(tone())
    path = write_file(tmp_path / "ünï code.xyz", data)
    stream = io.BytesIO(data)
    stream.seek(0, io.SEEK_END)
    for source in (path, str(path), data, bytearray(data), memoryview(data), stream, stream):
        assert np.array_equal(decode_audio(source).samples, decode_audio(data).samples)
    film = encode_video(np.zeros((10, 32, 32, 3), np.uint8), 10, audio=tone())
    assert abs(loudest_hz(decode_audio(film)) - 440) < 3


def test_a_long_sound_is_read_in_pieces_that_join_to_the_whole() -> None:
    data = encode_audio(tone(3.5))
    pieces = list(iter_audio(data, sample_rate=16_000, piece_s=1.0))
    assert [p.samples.shape[1] for p in pieces[:-1]] == [16_000] * 3
    whole = decode_audio(data, sample_rate=16_000)
    assert np.array_equal(np.concatenate([p.samples for p in pieces], axis=1), whole.samples)


def test_a_sound_over_the_limit_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(MediaError, match="longer than the limit of 2 s"):
        decode_audio(encode_audio(tone(3)), max_duration_s=2)


def test_the_length_is_read_from_the_header() -> None:
    assert audio_duration_s(encode_audio(tone(2))) == pytest.approx(2, abs=0.01)
    assert audio_duration_s(tone(2)) == 2
    assert audio_duration_s(b"nothing") == 0


def test_a_truncated_mp3_gives_what_is_left_of_it(caplog: pytest.LogCaptureFixture) -> None:
    data = encode_audio(tone(10), "mp3")
    found = decode_audio(data[: len(data) // 2])
    assert 4.5 < found.duration_s < 5.5
    assert "cut short" in caplog.text


def test_damage_in_the_middle_of_a_file_loses_only_that_part() -> None:
    data = bytearray(encode_audio(tone(10), "mp3"))
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    assert decode_audio(bytes(data)).duration_s > 9


FFCONCAT = b"ffconcat version 1.0\nfile secret.wav\n"
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
HLS = b"#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("playlist", [FFCONCAT, SDP, HLS])
def test_a_playlist_named_wav_opens_no_other_file_and_no_socket(
    playlist: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "secret.wav", encode_audio(tone()))
    disguised = write_file(tmp_path / "speech.wav", playlist)

    def no_socket(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.chdir(tmp_path)
    for source in (disguised, disguised.read_bytes()):
        with pytest.raises(MediaError, match="holds text, not sound"):
            decode_audio(source)


def _wav_header(channels: int, rate: int) -> bytes:
    layout = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) % 2**32, channels * 2 % 65536, 16)
    return b"RIFF" + struct.pack("<I", 4000) + b"WAVEfmt " + struct.pack("<I", 16) + layout + b"data" + bytes(4000)


BAD = {
    "empty": b"",
    "three bytes": b"RIF",
    "text": b"Dear diary, today nothing was recorded.\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "noise": bytes(range(1, 255)),
    "a WAV of its header only": encode_audio(tone())[:44],
    "a WAV cut inside its header": encode_audio(tone())[:20],
    "no channels": _wav_header(0, 16_000),
    "65535 channels": _wav_header(65_535, 16_000),
    "a rate of 0": _wav_header(1, 0),
    "a rate of 4 GHz": _wav_header(1, 4_000_000_000),
    "an MP3 tag and nothing": b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(100),
    "half an MP4 header": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00",
    "a film without sound": encode_video(np.zeros((4, 16, 16, 3), np.uint8), 4),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_with_a_hint(name: str, tmp_path: Path) -> None:
    for source in (BAD[name], write_file(tmp_path / "speech.wav", BAD[name])):
        for reading in (decode_audio, check_audio):
            with pytest.raises(MediaError) as caught:
                reading(source)
            assert caught.value.message.endswith(".") and caught.value.hint
            assert not any(word in str(caught.value).lower() for word in ("timeout", "connection", "unavailable"))


def test_missing_files_folders_and_addresses_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no file"):
        decode_audio(tmp_path / "nothing.wav")
    with pytest.raises(MediaError, match="is a folder"):
        decode_audio(tmp_path)
    for address in ("http://127.0.0.1:9/a.wav", "concat:a.wav|b.wav", "file:///etc/passwd", "tcp://127.0.0.1:9"):
        with pytest.raises(MediaError):
            decode_audio(address)


def test_samples_that_are_no_sound_are_refused() -> None:
    for samples in (np.full(10, np.nan), np.array([0.0, np.inf]), np.zeros((16_000, 20)), np.zeros((2, 2, 2))):
        with pytest.raises(MediaError):
            Audio(samples.astype(np.float32), 16_000)
    with pytest.raises(MediaError):
        Audio(np.zeros(10, np.int16), 16_000)  # type: ignore[arg-type]
    with pytest.raises(MediaError):
        Audio(np.zeros(10, np.float32), 0)
    with pytest.raises(MediaError, match="bare array"):
        decode_audio(np.zeros(10, np.float32))  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="no samples"):
        decode_audio(Audio(np.zeros((1, 0), np.float32), 16_000))
    with pytest.raises(MediaError, match="without samples"):
        encode_audio(Audio(np.zeros((1, 0), np.float32), 16_000))
    with pytest.raises(MediaError, match="no sound format"):
        encode_audio(tone(), "exe")


def test_a_file_with_not_a_number_in_it_is_refused() -> None:
    header = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    body = np.array([0.1, np.nan] * 800, "<f4").tobytes()
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", len(body)) + body
    with pytest.raises(MediaError, match="not finite"):
        decode_audio(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)


def test_write_file_replaces_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.bin"
    write_file(path, b"old")
    inside = path.open("rb")
    write_file(path, b"new and longer")
    assert (path.read_bytes(), inside.read()) == (b"new and longer", b"old")
    inside.close()
    with pytest.raises(MediaError, match="cannot be written"):
        write_file(path / "below a file", b"x")
    with pytest.raises(MediaError, match="cannot be written"):
        write_file(tmp_path / "new folder", b"x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.bin", "new folder"]
