"""A recording for Whisper: at its rate, in pieces that end in quiet moments, so that length costs no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..media import Audio, AudioSource, iter_audio

__all__ = ["recording_pieces"]

SAMPLE_RATE = 16_000
PIECE_S = 600.0
#: a piece may end this much earlier, at its quietest moment
CUT_WINDOW_S = 20.0


def recording_pieces(audio: AudioSource) -> Iterator[Audio]:
    """The recording at 16 kHz, mono, clipped to -1..1, in pieces of at most ten minutes that end in a quiet moment."""
    import numpy as np

    kept: Any = np.empty((1, 0), np.float32)
    end = int(PIECE_S * SAMPLE_RATE)
    for part in iter_audio(audio, sample_rate=SAMPLE_RATE, mono=True, piece_s=PIECE_S):
        # samples far outside -1..1 make Whisper hallucinate for twenty seconds per second of sound
        kept = np.concatenate([kept, np.clip(part.samples, -1.0, 1.0)], axis=1)
        del part  # a piece is 37 MiB, and its reader is about to need room
        while kept.shape[1] > end:
            cut = _quiet_cut(kept[0], end)
            piece, kept = kept[:, :cut], kept[:, cut:].copy()
            yield Audio(piece, SAMPLE_RATE)
    if kept.shape[1]:
        yield Audio(kept, SAMPLE_RATE)


def _quiet_cut(samples: Any, end: int) -> int:
    """Where to end a piece: the middle of the quietest 0.3 s in the 20 s before `end`."""
    import numpy as np

    width = int(0.1 * SAMPLE_RATE)
    start = end - int(CUT_WINDOW_S * SAMPLE_RATE)
    blocks = samples[start:end].reshape(-1, width)
    energy = np.convolve(np.square(blocks).mean(axis=1), np.ones(3), mode="valid")
    return start + int((int(energy.argmin()) + 1.5) * width)
