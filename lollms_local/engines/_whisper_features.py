"""Whisper's log-mel spectrogram, its Fourier transform in blocks: the library takes that of a whole recording at once.

Ten minutes of sound take the library 490 MiB of complex numbers; in blocks it is under 100 MiB, and every number is the
same: the product with the mel bands is still one, because matrix kernels round by the width of what they are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["BlockFeatures"]

#: frames that are transformed at a time: 30 s
BLOCK_FRAMES = 3000


class BlockFeatures:
    """In the place of a `faster_whisper.feature_extractor.FeatureExtractor`, whose settings it uses.

    Args:
        library: the library's own; short recordings are left to it.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def __call__(
        self, waveform: npt.NDArray[np.float32], padding: int = 160, chunk_length: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Features [mels, frames] of samples [n] at 16 kHz; `padding` zeros are put behind them."""
        import numpy as np

        own = self._library
        hop, width = own.hop_length, own.n_fft
        frames = (len(waveform) + padding) // hop
        if chunk_length is not None or frames <= 2 * BLOCK_FRAMES:
            return own(waveform, padding, chunk_length)  # type: ignore[no-any-return]
        half = width // 2
        tail = np.concatenate([waveform[-half - 1 :], np.zeros(padding, np.float32)])
        mirrored = [waveform[half:0:-1], waveform, np.zeros(padding, np.float32), tail[-2 : -half - 2 : -1]]
        samples = np.concatenate(mirrored).astype(np.float32, copy=False)
        window = np.hanning(width + 1)[:-1].astype(np.float32)
        power = np.empty((frames, width // 2 + 1), np.float32)
        for start in range(0, frames, BLOCK_FRAMES):
            end = min(start + BLOCK_FRAMES, frames)
            block = samples[start * hop : (end - 1) * hop + width]
            bands = own.stft(block, width, hop, window=window, center=False, return_complex=True).astype(np.complex64)
            np.abs(bands.T, out=power[start:end])
        del samples
        power **= 2
        features: npt.NDArray[np.float32] = own.mel_filters @ power.T
        del power
        np.log10(np.maximum(features, 1e-10, out=features), out=features)
        np.maximum(features, features.max() - 8.0, out=features)
        features += 4.0
        features /= 4.0
        return features
