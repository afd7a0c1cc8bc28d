"""Sound, pictures and films in and out of bytes: decoding is safe, encoding is exact, nothing touches the network.

Every input is recognised by its first bytes, never by its name, and read from memory or from an open file by the one
reader for that format, so that a playlist disguised as a recording cannot make us open another file. Length, size and
finiteness are checked before the data goes on. Every failure is a `MediaError` with one sentence.
"""

from __future__ import annotations

from .audio import Audio, AudioSource, audio_duration_s, check_audio, decode_audio, iter_audio, resample
from .audio_encode import encode_audio
from .files import write_file
from .images import decode_image, encode_png, read_png_metadata
from .subtitles import Cue, srt_text, vtt_text
from .video import decode_video, encode_video, to_uint8

__all__ = [
    "Audio",
    "AudioSource",
    "Cue",
    "audio_duration_s",
    "check_audio",
    "decode_audio",
    "decode_image",
    "decode_video",
    "encode_audio",
    "encode_png",
    "encode_video",
    "iter_audio",
    "read_png_metadata",
    "resample",
    "srt_text",
    "to_uint8",
    "vtt_text",
    "write_file",
]
