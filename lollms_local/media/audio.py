"""Sound: what it is in memory, decoding from any usual format, resampling."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Union

from ..errors import MediaError
from .containers import av_errors, decoded_frames, open_container

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    #: float32 [channels, samples] and its rate in Hz
    _Block = tuple[npt.NDArray[np.float32], int]

__all__ = [
    "Audio",
    "AudioSource",
    "array_frames",
    "audio_duration_s",
    "channel_layout",
    "check_audio",
    "decode_audio",
    "iter_audio",
    "resample",
]

MAX_CHANNELS = 16
MIN_RATE, MAX_RATE = 1_000, 768_000
#: the longest sound that is held in memory at once; longer ones are read in pieces by `iter_audio`
MAX_DURATION_S = 2 * 3600.0


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound in memory.

    Attributes:
        samples: float32 [channels, samples], nominally -1..1; a one-dimensional array is taken as one channel.
        sample_rate: Hz.

    Raises:
        MediaError: wrong shape or rate, or samples that are not finite.
    """

    samples: npt.NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        import numpy as np

        array = np.asarray(self.samples)
        if array.ndim == 1:
            array = array[None, :]
        if array.ndim != 2 or not 1 <= array.shape[0] <= MAX_CHANNELS or array.dtype.kind != "f":
            raise MediaError(
                f"A sound needs float samples of shape [channels, samples] with 1 to {MAX_CHANNELS} channels, not "
                f"{array.dtype} {list(np.shape(self.samples))}.",
                hint="Transpose [samples, channels]; divide 16-bit integers by 32768.",
            )
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise MediaError(
                f"A sample rate of {self.sample_rate} Hz is not usable.",
                hint=f"It must be {MIN_RATE} to {MAX_RATE} Hz.",
            )
        # a sum is not finite if any sample is not, and needs no second array; float64 cannot overflow on float32 input
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise MediaError("The sound has samples that are not finite numbers.", hint="Repair or record it again.")
        object.__setattr__(self, "samples", np.ascontiguousarray(array, dtype=np.float32))
        object.__setattr__(self, "sample_rate", int(self.sample_rate))

    @property
    def channels(self) -> int:
        """1 = mono, 2 = stereo."""
        return int(self.samples.shape[0])

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return float(self.samples.shape[1] / self.sample_rate)

    def mono(self) -> Audio:
        """The mean of the channels."""
        return self if self.channels == 1 else Audio(self.samples.mean(axis=0, keepdims=True), self.sample_rate)


AudioSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], Audio]


# --- decoding -----------------------------------------------------------------------------------------------------


def decode_audio(
    source: AudioSource, *, sample_rate: int | None = None, mono: bool = False, max_duration_s: float = MAX_DURATION_S
) -> Audio:
    """Read a whole sound (also the sound of a film) into memory.

    Args:
        source: a path, the bytes of a file, an open binary file, or an `Audio`, which is only converted.
        sample_rate: Hz wanted; None keeps the source's.
        mono: mix the channels by their mean.
        max_duration_s: a longer sound is refused before it fills the memory.

    Raises:
        MediaError: missing, empty, not a sound, damaged from the start, without samples, too long, not
            finite, or a URL.
    """
    import numpy as np

    pieces = list(
        iter_audio(
            source, sample_rate=sample_rate, mono=mono, piece_s=60.0, max_duration_s=max_duration_s, refuse_longer=True
        )
    )
    samples = pieces[0].samples if len(pieces) == 1 else np.concatenate([p.samples for p in pieces], axis=1)
    return Audio(samples, pieces[0].sample_rate)


def iter_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    mono: bool = False,
    piece_s: float = 600.0,
    max_duration_s: float = 24 * 3600.0,
    refuse_longer: bool = True,
) -> Generator[Audio, None, None]:
    """Read a sound in pieces of `piece_s` seconds (the last one is shorter), so that its length costs no memory.

    Args:
        source, sample_rate, mono, max_duration_s: as in `decode_audio`.
        piece_s: seconds of each piece.
        refuse_longer: False = stop silently at `max_duration_s` instead of raising.

    Raises:
        MediaError: as `decode_audio`. What came before the fault has been yielded by then.
    """
    frames = _frames_of(source, sample_rate, mono)
    held: list[npt.NDArray[np.float32]] = []
    held_samples, total, rate = 0, 0, 0
    with contextlib.closing(frames):
        for block, rate in frames:
            total += block.shape[1]
            if total > max_duration_s * rate:
                if refuse_longer:
                    raise MediaError(
                        f"The sound is longer than the limit of {_human_s(max_duration_s)}.",
                        hint="Cut it into shorter files.",
                    )
                break
            held.append(block)
            held_samples += block.shape[1]
            size = max(1, round(piece_s * rate))
            while held_samples >= size:
                held_samples -= size
                yield Audio(_taken(held, size), rate)
    if held_samples:
        yield Audio(_taken(held, held_samples), rate)
    elif total == 0:
        raise MediaError("The sound has no samples.", hint="Record it again.")


def _taken(held: list[npt.NDArray[np.float32]], size: int) -> npt.NDArray[np.float32]:
    """The first `size` samples of the blocks; the rest stays in them, and nothing here keeps what was taken alive."""
    import numpy as np

    joined = np.concatenate(held, axis=1)
    held[:] = [joined[:, size:].copy()]
    return joined[:, :size]


def resample(audio: Audio, sample_rate: int) -> Audio:
    """The same sound at another rate (Hz), through libswresample; unchanged if the rate is already right."""
    return (
        audio
        if audio.sample_rate == sample_rate
        else decode_audio(audio, sample_rate=sample_rate, max_duration_s=float("inf"))
    )


def _frames_of(source: AudioSource, sample_rate: int | None, mono: bool) -> Generator[_Block, None, None]:
    """Blocks of float32 [channels, samples] with their rate, resampled and mixed."""
    if isinstance(source, Audio):
        same_rate = sample_rate in (None, source.sample_rate)
        blocks = _as_it_is(source) if same_rate else _resampled(array_frames(source), sample_rate)
    elif type(source).__module__.partition(".")[0] in ("numpy", "torch"):
        raise MediaError(
            "A bare array does not say its sample rate.",
            hint="Wrap it: lollms_local.media.Audio(samples, sample_rate).",
        )
    else:
        blocks = _resampled(_file_frames(source), sample_rate)
    with contextlib.closing(blocks):
        for block, rate in blocks:
            if block.shape[1]:
                yield (block.mean(axis=0, keepdims=True) if mono and block.shape[0] > 1 else block), rate


def _as_it_is(audio: Audio) -> Generator[_Block, None, None]:
    yield audio.samples, audio.sample_rate


def array_frames(audio: Audio) -> Generator[Any, None, None]:
    """PyAV frames of a sound in memory, one second each."""
    import av

    layout = channel_layout(audio.channels)
    for start in range(0, audio.samples.shape[1], audio.sample_rate):
        block = audio.samples[:, start : start + audio.sample_rate]
        frame = av.AudioFrame.from_ndarray(block.copy(), format="fltp", layout=layout)
        frame.sample_rate = audio.sample_rate
        yield frame


def channel_layout(channels: int) -> str:
    return {1: "mono", 2: "stereo"}.get(channels, f"{channels}c")


def _resampled(frames: Generator[Any, None, None], sample_rate: int | None) -> Generator[_Block, None, None]:
    """Frames of any sample format to float32 blocks."""
    import av

    resampler: Any = None
    rate = 0
    with contextlib.closing(frames), av_errors("The sound"):
        for frame in frames:
            if resampler is None:
                rate = sample_rate or frame.sample_rate
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            frame.pts = None  # gaps in the time stamps would be filled with silence or raise
            for out in resampler.resample(frame):
                yield out.to_ndarray(), rate
        for out in resampler.resample(None) if resampler is not None else ():
            yield out.to_ndarray(), rate


def _file_frames(source: Any) -> Generator[Any, None, None]:
    """Decoded PyAV frames of the first sound stream of a file."""
    with open_container(source) as (container, name):
        if not container.streams.audio:
            raise MediaError(f"{name} has no sound.", hint="Give a file with a sound track.")
        track = container.streams.audio[0]
        context = track.codec_context
        if not (MIN_RATE <= context.sample_rate <= MAX_RATE and 1 <= context.channels <= MAX_CHANNELS):
            raise MediaError(
                f"{name} claims {context.channels} channels at {context.sample_rate} Hz, which is not usable.",
                hint="The file is damaged; record or download it again.",
            )
        said_s = float(track.duration * track.time_base) if track.duration and track.time_base else 0.0
        yield from decoded_frames(container, track, name, said_s)


def _human_s(seconds: float) -> str:
    return f"{seconds / 3600:g} hours" if seconds >= 3600 else f"{seconds:g} s"


def audio_duration_s(source: AudioSource) -> float:
    """Seconds that a sound's header claims, without decoding it; 0 where it does not say or cannot be read."""
    if isinstance(source, Audio):
        return source.duration_s
    try:
        with open_container(source) as (container, _):
            track = container.streams.audio[0] if container.streams.audio else None
            if track is not None and track.duration and track.time_base:
                return float(track.duration * track.time_base)
            return float(container.duration / 1e6) if container.duration else 0.0
    except MediaError:
        return 0.0  # whoever decodes it says what is wrong


def check_audio(source: AudioSource) -> None:
    """Decode the first second, to say what is wrong with a sound before work begins on it.

    Raises:
        MediaError: as `decode_audio`, for what shows at the beginning.
    """
    pieces = iter_audio(source, piece_s=1.0)
    with contextlib.closing(pieces):
        next(pieces, None)
