"""The six modalities: for each, its options, its results and the Protocol that an engine implements.

One file per modality: ``chat`` (llm), ``image`` (tti), ``transcription`` (stt), ``speech`` (tts), ``video`` (ttv),
``music`` (ttm). ``base`` has what they share.
"""

from __future__ import annotations

from .base import MODALITIES, Control, LoadOptions, Modality, Progress

__all__ = ["MODALITIES", "Control", "LoadOptions", "Modality", "Progress"]
