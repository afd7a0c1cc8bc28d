"""A Whisper folder before it is loaded: whole or damaged, how many bytes, on which device, in which arithmetic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..ct2 import Ct2Header, read_ct2
from ..devices import Device
from ..errors import LoadError, UnsupportedRequest

__all__ = ["WhisperPlan", "checked_files", "choose_compute_type", "language_code", "usable_device", "workspace_bytes"]

_REQUIRED = ("model.bin", "config.json", "tokenizer.json")
_LAYER = re.compile(r"(encoder|decoder)/layer_\d+/")


class WhisperPlan(NamedTuple):
    """Where the model goes: ctranslate2's device, and its arithmetic."""

    device: str
    compute_type: str


def choose_compute_type(device: Device, compute_type: str = "auto", dtype: str = "auto") -> tuple[str, str]:
    """The arithmetic, and the reason.

    Args:
        device: where it will run.
        compute_type: asked for by name, or "auto".
        dtype: the general option; it counts where `compute_type` is "auto".
    """
    on_gpu = device.kind == "cuda"
    asked = compute_type if compute_type != "auto" else dtype
    if asked == "auto":
        return ("float16", "fastest on a GPU") if on_gpu else ("int8", "a third of the memory of float32, and faster")
    if not on_gpu and asked not in ("int8", "float32"):
        nearest = "int8" if asked.startswith("int8") or asked == "float16" else "float32"
        return nearest, f"a CPU cannot run {asked} here"
    return asked, "asked for"


def checked_files(path: Path) -> Ct2Header:
    """Refuse what the library would crash on, or would go to the network for."""
    if not path.is_dir():
        raise LoadError(f"{path} is not a folder with a Whisper model.", hint="Name the folder that holds model.bin.")
    missing = [name for name in _REQUIRED if not (path / name).is_file()]
    if missing:
        raise LoadError(
            f"{', '.join(missing)} not in {path}.",
            hint="Remove the model and download it again, or complete the folder.",
        )
    header = read_ct2(path / "model.bin")
    if header.spec != "WhisperSpec":
        raise LoadError(f"{path} holds a {header.spec} model, not a Whisper model.", hint="Choose another model.")
    return header


def usable_device(device: Device) -> tuple[Device, str]:
    """CTranslate2 knows NVIDIA cards and the CPU only."""
    if device.kind == "cpu":
        return device, ""
    cpu = Device("cpu", reason="CTranslate2 runs on NVIDIA cards and on the CPU only")
    if device.kind == "mps":
        return cpu, "On the CPU: CTranslate2 does not use Apple GPUs."
    import ctranslate2

    if ctranslate2.get_cuda_device_count() > device.index:
        return device, ""
    return cpu, "On the CPU: this build of CTranslate2 sees no NVIDIA card."


def workspace_bytes(header: Ct2Header, on_gpu: bool) -> int:
    """Activations of a batch: encoder states of 30 s and the decoder's keys and values for every hypothesis.

    The factor is measured: tiny adds 20 to 50 MB for one recording at beam size 5.
    """
    states, width = header.shape("encoder/position_encodings/encodings") or (1500, 1280)
    layers = len({m[0] for v in header.variables if (m := _LAYER.match(v.name))})
    return 4 * states * width * (8 + 2 * layers) * (8 if on_gpu else 1)


def language_code(language: str) -> str:
    """Whisper's code for "fr", "fr-FR" or "French"."""
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    word = language.strip().lower().replace("_", "-")
    names = _language_names()
    code = names.get(word) or (word if word in _LANGUAGE_CODES else word.partition("-")[0])
    if code not in _LANGUAGE_CODES:
        raise UnsupportedRequest(
            f"Whisper does not know the language {language!r}.", hint="Use a code such as en, fr, de, es, zh, ar or hi."
        )
    return code


def _language_names() -> dict[str, str]:
    return {
        "english": "en", "chinese": "zh", "mandarin": "zh", "german": "de", "spanish": "es", "russian": "ru",
        "korean": "ko", "french": "fr", "japanese": "ja", "portuguese": "pt", "turkish": "tr", "polish": "pl",
        "catalan": "ca", "dutch": "nl", "arabic": "ar", "swedish": "sv", "italian": "it", "indonesian": "id",
        "hindi": "hi", "finnish": "fi", "vietnamese": "vi", "hebrew": "he", "ukrainian": "uk", "greek": "el",
        "czech": "cs", "romanian": "ro", "danish": "da", "hungarian": "hu", "norwegian": "no", "thai": "th",
        "persian": "fa", "bengali": "bn", "bulgarian": "bg", "croatian": "hr", "slovak": "sk", "urdu": "ur",
    }  # fmt: skip
