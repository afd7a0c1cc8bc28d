"""Films: H.264 in MP4, VP9 in WebM and animated GIF from frames, and frames from such files."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MediaError
from .audio import Audio, decode_audio, resample
from .audio_encode import add_audio_stream, mux_audio
from .containers import av_errors, open_container

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["decode_video", "encode_video", "to_uint8"]

MIN_FPS, MAX_FPS = 0.1, 240.0
#: decoded frames are held in memory: 1.5 GB of RGB at most
MAX_DECODED_BYTES = 1_500_000_000
_BT709 = 1  # ITU-T H.273 code point for primaries, transfer and matrix
_LIMITED_RANGE = 1

#: format -> video encoder, its options, sound encoder, sample format, bit rate, rate of the sound in Hz (0 = as it is)
_CONTAINERS: dict[str, tuple[str, dict[str, str], str, str, int, int]] = {
    "mp4": ("libx264", {"crf": "18", "preset": "fast"}, "aac", "fltp", 160_000, 0),
    "webm": (
        "libvpx-vp9",
        {"crf": "28", "b": "0", "deadline": "good", "cpu-used": "4"},
        "libopus",
        "flt",
        96_000,
        48_000,
    ),
}


def to_uint8(values: Any) -> npt.NDArray[np.uint8]:
    """Pixels 0..1 (float, any shape) to 0..255, rounded; values outside are clipped.

    Raises:
        MediaError: a value is not finite.
    """
    import numpy as np

    array: npt.NDArray[Any] = np.asarray(values)
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise MediaError("The picture has values that are not finite numbers.")
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def encode_video(
    frames: Any,
    fps: float | Fraction,
    format: str = "mp4",
    audio: Audio | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a film.

    Args:
        frames: uint8 [frames, height, width, 3], at least one frame. Odd heights and widths get one more row or
            column, a copy of the edge, because 4:2:0 colour needs even ones.
        fps: frames per second, 0.1 to 240; 29.97 and the like are kept as fractions.
        format: "mp4" (H.264, its index in front so that it plays while it loads), "webm" (VP9) or "gif" (no sound).
        audio: the sound track.
        metadata: title, comment ... as text; not in a GIF.

    Raises:
        MediaError: wrong shape, type, rate or format, or the encoder failed.
    """
    pixels = _checked(frames)
    if not MIN_FPS <= float(fps) <= MAX_FPS:
        raise MediaError(
            f"{float(fps):g} frames per second are not usable.", hint=f"Choose {MIN_FPS:g} to {MAX_FPS:g}."
        )
    rate = Fraction(fps).limit_denominator(1001)
    if format == "gif":
        return _encode_gif(pixels, rate)
    if format not in _CONTAINERS:
        raise MediaError(f"There is no film format {format!r}.", hint=f"Choose {', '.join(_CONTAINERS)} or gif.")
    # a real file, because moving the index to the front needs to re-open the film by name
    handle, name = tempfile.mkstemp(suffix=f".{format}")
    os.close(handle)
    try:
        with av_errors("The film to be written"):
            _encode_file(Path(name), pixels, rate, format, audio, metadata or {})
        return Path(name).read_bytes()
    finally:
        Path(name).unlink(missing_ok=True)


def _checked(frames: Any) -> npt.NDArray[np.uint8]:
    import numpy as np

    pixels = np.asarray(frames)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
        raise MediaError(
            f"A film needs uint8 frames [frames, height, width, 3], not {pixels.dtype} {list(pixels.shape)}.",
            hint="lollms_local.media.to_uint8 turns 0..1 floats into bytes.",
        )
    return pixels


def _encode_file(
    path: Path,
    pixels: npt.NDArray[np.uint8],
    rate: Fraction,
    format: str,
    audio: Audio | None,
    metadata: Mapping[str, str],
) -> None:
    import av
    import numpy as np

    codec, options, sound_codec, sample_format, bit_rate, sound_rate = _CONTAINERS[format]
    _, height, width, _ = pixels.shape
    container_options = {"movflags": "+faststart+use_metadata_tags"} if format == "mp4" else {}
    with av.open(str(path), "w", format=format, container_options=container_options) as container:
        container.metadata.update({str(k): str(v) for k, v in metadata.items()})
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        _tag_colours(stream.codec_context)
        sound = None
        if audio is not None:
            audio = resample(audio, sound_rate) if sound_rate else audio
            sound = add_audio_stream(container, audio, sound_codec, sample_format, bit_rate)
        for number, picture in enumerate(pixels):
            if height % 2 or width % 2:
                picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None and audio is not None:
            mux_audio(container, sound, audio)


def _tag_colours(context: Any) -> None:
    """Say which RGB-to-YUV matrix was used: players guess by picture size otherwise, and shift the colours."""
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE


def _encode_gif(pixels: npt.NDArray[np.uint8], rate: Fraction) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(p) for p in pixels]
    buffer = io.BytesIO()
    # GIF counts hundredths of a second, and players slow anything under 2 of them down to 10
    milliseconds = max(20, round(100 / rate) * 10)
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def decode_video(source: Any) -> tuple[npt.NDArray[np.uint8], float, Audio | None]:
    """All frames of an MP4 or WebM film.

    Args:
        source: a path or the bytes of a file.

    Returns:
        uint8 [frames, height, width, 3], frames per second, and the sound track or None.

    Raises:
        MediaError: not a film, damaged, or larger than 1.5 GB when decoded.
    """
    import numpy as np

    pictures: list[npt.NDArray[np.uint8]] = []
    size = 0
    with open_container(source) as (container, name):
        if not container.streams.video:
            raise MediaError(f"{name} has no pictures.", hint="Give a film.")
        track = container.streams.video[0]
        fps = float(track.average_rate or track.guessed_rate or 25)
        has_sound = bool(container.streams.audio)
        for frame in container.decode(track):
            size += 3 * frame.width * frame.height
            if size > MAX_DECODED_BYTES:
                raise MediaError(f"{name} is too long to be held in memory.", hint="Cut it or make it smaller.")
            pictures.append(frame.to_ndarray(format="rgb24"))
    if not pictures:
        raise MediaError(f"{name} has no pictures that can be decoded.", hint="Save or download it again.")
    return np.stack(pictures), fps, decode_audio(source) if has_sound else None
