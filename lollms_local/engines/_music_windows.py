"""Music longer than a model's window: which parts to make, and how to join sounds without a click. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

__all__ = ["Window", "chroma", "cross_fade", "plan_windows"]


@dataclass(frozen=True)
class Window:
    """One call of the model, in frames of its codec.

    Attributes:
        prompt: number of the description that rules it.
        start: frames of new music made before it.
        context: frames of earlier music that it listens to.
        new: frames that it adds.
    """

    prompt: int
    start: int
    context: int
    new: int


def plan_windows(total: int, prompts: int, given: int, overlap: int, longest: int) -> list[Window]:
    """Parts that make up `total` frames.

    Args:
        total: frames of new music.
        prompts: number of descriptions; each rules an equal share.
        given: frames of a given sound before the first part.
        overlap: frames that a part listens to, as far as there are any.
        longest: the model's window: context and new frames together.
    """
    windows, start = [], 0
    for prompt in range(prompts):
        end = round(total * (prompt + 1) / prompts)
        while start < end:
            context = min(overlap, given + start, longest - 1)
            new = min(end - start, longest - context)
            windows.append(Window(prompt, start, context, new))
            start += new
    return windows


def cross_fade(first: Samples, second: Samples, overlap: int) -> Samples:
    """Two sounds [channels, samples] of which the last and the first `overlap` samples are the same moment."""
    import numpy as np

    overlap = min(overlap, first.shape[1], second.shape[1])
    if not overlap:
        return np.concatenate([first, second], axis=1)
    ramp = np.linspace(0.0, 1.0, overlap, dtype=np.float32)
    middle = first[:, -overlap:] * (1 - ramp) + second[:, :overlap] * ramp
    return np.concatenate([first[:, :-overlap], middle, second[:, overlap:]], axis=1)


def chroma(samples: Samples, sample_rate: int, n_fft: int = 16_384, hop: int = 4_096, bins: int = 12) -> Samples:
    """The strongest of the twelve tones at each moment, one-hot: float32 [frames, bins].

    The same steps as transformers' MusicgenMelodyFeatureExtractor, which needs torchaudio: power spectrogram (periodic
    Hann window, centred, reflected edges), chroma filters, the largest bin.

    Args:
        samples: mono float32 [samples].
        sample_rate: Hz.
    """
    import numpy as np
    from transformers.audio_utils import chroma_filter_bank

    if len(samples) < n_fft:
        pad = n_fft - len(samples)
        samples = np.pad(samples, (pad // 2, pad - pad // 2))
    filters = chroma_filter_bank(num_frequency_bins=n_fft, num_chroma=bins, sampling_rate=sample_rate, tuning=0)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(samples, n_fft // 2, mode="reflect")
    starts: Sequence[int] = range(0, len(padded) - n_fft + 1, hop)
    strongest = [int(np.argmax(filters @ np.abs(np.fft.rfft(padded[s : s + n_fft] * window)) ** 2)) for s in starts]
    return np.eye(bins, dtype=np.float32)[strongest]
