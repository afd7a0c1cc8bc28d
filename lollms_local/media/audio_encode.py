"""Sound to bytes: WAV, FLAC, MP3, Ogg and Opus."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Mapping
from typing import Any

from ..errors import MediaError
from .audio import Audio, array_frames, channel_layout, resample
from .containers import av_errors

__all__ = ["add_audio_stream", "encode_audio", "mux_audio"]

log = logging.getLogger(__name__)

#: peak of a normalised signal: lossy formats overshoot a little
NORMAL_PEAK = 0.97

#: format -> muxer, encoder, sample format, bit rate, rates that the encoder takes (empty = all)
_ENCODERS: dict[str, tuple[str, str, str, int, tuple[int, ...]]] = {
    "flac": ("flac", "flac", "s16", 0, ()),
    "mp3": ("mp3", "libmp3lame", "fltp", 192_000, (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    "ogg": ("ogg", "libopus", "flt", 96_000, (8000, 12000, 16000, 24000, 48000)),
    "opus": ("ogg", "libopus", "flt", 96_000, (8000, 12000, 16000, 24000, 48000)),
}
_ALIASES = {"wave": "wav", "mpeg": "mp3", "vorbis": "ogg"}


def encode_audio(
    audio: Audio, format: str = "wav", *, metadata: Mapping[str, str] | None = None, normalise: bool = False
) -> bytes:
    """The bytes of a sound file.

    A signal that goes beyond -1..1 is scaled down as a whole (and the log says so): clipping would distort it.

    Args:
        audio: what to encode; at least one sample.
        format: "wav" (16-bit PCM), "flac" (16 bit), "mp3" (192 kbit/s), "ogg" or "opus" (Opus in Ogg, 96 kbit/s per
            channel). A rate that the format does not know is raised to the next one that it does.
        metadata: title, artist, comment ... as text.
        normalise: scale the peak to 0.97.

    Raises:
        MediaError: unknown format, no samples, or the encoder failed.
    """
    name = format.lower().lstrip(".")
    name = _ALIASES.get(name, name)
    if name != "wav" and name not in _ENCODERS:
        raise MediaError(f"There is no sound format {format!r}.", hint=f"Choose wav, {', '.join(_ENCODERS)}.")
    if not audio.samples.size:
        raise MediaError("A sound without samples cannot be written.")
    levelled = _levelled(audio, normalise)
    tags = {str(k): str(v) for k, v in (metadata or {}).items()}
    return _encode_wav(levelled, tags) if name == "wav" else _encode_av(levelled, *_ENCODERS[name], tags)


def _levelled(audio: Audio, normalise: bool) -> Audio:
    peak = float(max(audio.samples.max(), -audio.samples.min()))
    if normalise and peak > 0:
        return Audio(audio.samples * (NORMAL_PEAK / peak), audio.sample_rate)
    if peak > 1:
        log.info("The sound peaks at %.2f; scaled down as a whole to 1.", peak)
        return Audio(audio.samples / peak, audio.sample_rate)
    return audio


def _encode_wav(audio: Audio, tags: Mapping[str, str]) -> bytes:
    """RIFF WAVE, 16-bit PCM. Decoding it gives the same 16-bit values: both sides scale by 32768."""
    import numpy as np

    scaled = np.rint(audio.samples.T * 32768.0)
    pcm = np.clip(scaled, -32768, 32767).astype("<i2").tobytes()
    block = 2 * audio.channels
    layout = struct.pack("<HHIIHH", 1, audio.channels, audio.sample_rate, audio.sample_rate * block, block, 16)
    chunks = [_chunk(b"fmt ", layout), _info_chunk(tags), _chunk(b"data", pcm)]
    body = b"WAVE" + b"".join(chunks)
    if len(body) >= 1 << 32:
        raise MediaError("The sound is too long for a WAV file (4 GB).", hint="Choose flac.")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


_INFO_KEYS = {
    "title": b"INAM",
    "artist": b"IART",
    "comment": b"ICMT",
    "genre": b"IGNR",
    "date": b"ICRD",
    "software": b"ISFT",
}


def _info_chunk(tags: Mapping[str, str]) -> bytes:
    """LIST/INFO; keys that RIFF does not know go together into the comment."""
    known = {_INFO_KEYS[k]: v for k, v in tags.items() if k in _INFO_KEYS}
    rest = "; ".join(f"{k}={v}" for k, v in tags.items() if k not in _INFO_KEYS)
    if rest:
        known[b"ICMT"] = f"{known[b'ICMT']}; {rest}" if b"ICMT" in known else rest
    if not known:
        return b""
    return _chunk(b"LIST", b"INFO" + b"".join(_chunk(k, v.encode() + b"\0") for k, v in known.items()))


def _encode_av(
    audio: Audio,
    muxer: str,
    codec: str,
    sample_format: str,
    bit_rate: int,
    rates: tuple[int, ...],
    tags: Mapping[str, str],
) -> bytes:
    import av

    if audio.channels > 2 and codec == "libmp3lame":
        raise MediaError(f"MP3 holds at most 2 channels, not {audio.channels}.", hint="Choose flac, or mix to stereo.")
    if rates and audio.sample_rate not in rates:
        audio = resample(audio, next((r for r in rates if r >= audio.sample_rate), rates[-1]))
    buffer = io.BytesIO()
    with av_errors("The sound to be written"), av.open(buffer, "w", format=muxer) as container:
        container.metadata.update(tags)
        stream = add_audio_stream(container, audio, codec, sample_format, bit_rate)
        mux_audio(container, stream, audio)
    return buffer.getvalue()


def add_audio_stream(container: Any, audio: Audio, codec: str, sample_format: str, bit_rate: int) -> Any:
    """A sound stream for `audio` in an open PyAV container; `bit_rate` is per file, for Opus per channel."""
    stream = container.add_stream(codec, rate=audio.sample_rate, layout=channel_layout(audio.channels))
    stream.format = sample_format
    if bit_rate:
        stream.bit_rate = bit_rate * (audio.channels if codec == "libopus" else 1)
    return stream


def mux_audio(container: Any, stream: Any, audio: Audio) -> None:
    """Encode all of `audio` into the stream and flush it."""
    position = 0
    for frame in array_frames(audio):
        frame.pts = position
        position += frame.samples
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
