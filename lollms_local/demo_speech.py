"""A spoken sentence to try speech-to-text with: from the starter voice, else from espeak-ng."""

from __future__ import annotations

import shutil
import subprocess

from .errors import EngineNotInstalled, MediaError, ModelNotDownloaded
from .media import encode_audio
from .modalities.base import Control
from .runtime import Job, get_runtime

__all__ = ["spoken_sentence"]

VOICE = "piper-en-us-joe-medium"


def spoken_sentence(text: str) -> bytes:
    """WAV file of someone saying `text`.

    Raises:
        MediaError: there is neither the starter voice with its library nor espeak-ng; says how to get one.
    """
    from .modalities.speech import SpeechLoadOptions, SpeechOptions

    runtime = get_runtime()
    job = Job(runtime.catalog.get(VOICE), SpeechLoadOptions(), runtime.models_dir, holder="demo")
    try:
        speech = runtime.call(job, lambda voice: voice.speak(text, SpeechOptions(), Control()))
    except (EngineNotInstalled, ModelNotDownloaded) as exc:
        program = shutil.which("espeak-ng") or shutil.which("espeak")
        if program is None:
            raise MediaError(
                "There is no voice here to speak a test sentence with.",
                hint=f"Run: lollms-local models download {VOICE} --yes; pip install 'lollms-local[piper]'",
            ) from exc
        return subprocess.run([program, "--stdout", text], check=True, capture_output=True, timeout=60).stdout
    return encode_audio(speech.audio)
