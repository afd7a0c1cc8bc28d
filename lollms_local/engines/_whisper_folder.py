"""A Whisper folder before it is loaded: whole or damaged, how many bytes, on which device, in which arithmetic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..ct2 import Ct2Header, read_ct2
from ..devices import Device
from ..errors import LoadError, UnsupportedRequest

__all__ = [
    "GPU_BATCH",
    "KEPT_BYTES",
    "SOUND_BYTES",
    "WhisperPlan",
    "batch_that_fits",
    "checked_files",
    "choose_compute_type",
    "decoding_bytes",
    "language_code",
    "loading_bytes",
    "packed_bytes",
    "usable_device",
]

_REQUIRED = ("model.bin", "config.json", "tokenizer.json")
_DECODER_LAYER = re.compile(r"decoder/layer_\d+/")


#: a ten-minute piece on its way to the model: its samples, the speech detector's copies and activations (measured: 280
#: MiB for one that is speech throughout), and the library's own buffers
SOUND_BYTES = 300 << 20
#: what of it is still there while the model decodes: samples, those of them that are speech, features
KEPT_BYTES = 130 << 20
#: hypotheses that memory is kept for: the default beam
BEAMS = 5
#: tokens of a hypothesis: the text before it and its own, or its own alone in a batch
TOKENS, BATCH_TOKENS = 448, 232
#: stretches of speech decoded at once on a GPU unless the user says otherwise
GPU_BATCH = 8


class WhisperPlan(NamedTuple):
    """Where the model goes: ctranslate2's device, its arithmetic, and the largest batch that memory is kept for."""

    device: str
    compute_type: str
    batch_size: int = 1


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


def decoding_bytes(header: Ct2Header, compute_type: str, batch_size: int) -> int:
    """Activations of a batch: the more of what encoding takes and what decoding takes.

    Encoding holds one layer's attention (30 s by 30 s for every head) and 15 arrays as large as its states. Decoding
    holds keys and values of those states for every layer, and of every hypothesis' own tokens; these grow by one token
    at a time, which leaves holes: 1.7 times their size. Measured on the CPU with widths 384 and 1280, 4 and 12 layers,
    batches of 1 to 8 and the longest text: 1 to 5 % over; in half precision not measured.
    """
    states, width = header.shape("encoder/position_encodings/encodings") or (1500, 1280)
    layers = len({m[0] for v in header.variables if (m := _DECODER_LAYER.match(v.name))})
    heads = max(1, width // 64)
    encoding = heads * states * states + 15 * states * width
    tokens = TOKENS if batch_size == 1 else BATCH_TOKENS
    decoding = (1 + 2 * layers) * states * width + int(1.7 * BEAMS * tokens * width * 2 * layers)
    return batch_size * max(encoding, decoding) * (2 if compute_type.endswith("float16") else 4)


def packed_bytes(header: Ct2Header, float_bytes: int, *, quantised: bool) -> int:
    """What MKL adds on Intel's processors: CTranslate2 stores matrices in its packed form there.

    The word table is needed as it is as well, and packed rows are padded: measured with tiny.en, 1.27 times the table
    for 8 bits and 1.4 times for float32, on a Xeon. Other processors have no such copy.
    """
    words, width = header.shape("decoder/embeddings/weight") or (0, 0)
    return int(1.3 * words * width * (1 if quantised else float_bytes))


def batch_that_fits(header: Ct2Header, compute_type: str, wanted: int, room_bytes: int) -> int:
    """The batch wanted, halved until it fits: a smaller one costs time and not the answer."""
    batch = wanted
    while batch > 1 and decoding_bytes(header, compute_type, batch) > room_bytes:
        batch //= 2
    return batch


def loading_bytes(header: Ct2Header) -> int:
    """RAM at the worst moment of a load on the CPU: the file as it is, and its largest variable in float32 and int8."""
    return sum(v.file_bytes for v in header.variables) + 5 * max(v.count for v in header.variables)


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
