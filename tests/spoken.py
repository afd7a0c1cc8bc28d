"""Speech for tests: the starter voice says a text, always in the same way."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from lollms_local.catalog import Catalog, builtin_catalog_path
from lollms_local.devices import Device
from lollms_local.engines.piper import PiperSpeech
from lollms_local.media import Audio
from lollms_local.modalities.base import Control
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions

TEXT = "The quick brown fox jumps over the lazy dog. In the morning we walked along the river."


@functools.cache
def spoken(models_dir: Path, text: str = TEXT) -> Audio:
    """22.05 kHz, mono; the voice is loaded anew for each text and freed."""
    spec = Catalog.read(builtin_catalog_path()).get("piper-en-us-joe-medium")
    path, cpu, options = models_dir / spec.id, Device("cpu"), SpeechLoadOptions()
    voice = PiperSpeech.load(spec, path, cpu, options, PiperSpeech.footprint(spec, path, cpu, options, 1 << 40))
    try:
        return voice.speak(text, SpeechOptions(noise_scale=0, noise_w_scale=0), Control()).audio
    finally:
        voice.close()


def words(text: str) -> list[str]:
    """Lower case words without punctuation."""
    return re.findall(r"[a-z']+", text.lower())
