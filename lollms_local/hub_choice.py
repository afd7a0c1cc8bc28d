"""Which files of a repository a model needs, where the catalogue does not say: pure, names in, names out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from .catalog import ModelSpec
from .downloads import PlannedFile
from .errors import DownloadError
from .pickles import is_convertible
from .safety import is_safe_name

__all__ = ["usual_files"]

#: best first: what the llama.cpp project recommends as the balance of size and quality
QUANTISATIONS = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q4_1", "IQ4_XS", "Q6_K", "Q8_0", "BF16", "F16")
_TEXT = frozenset([".json", ".jsonl", ".txt", ".model", ".yaml", ".yml", ".tiktoken", ".jinja", ".vocab"])
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8|int8|non_ema|ema)[.-]")


def usual_files(spec: ModelSpec, every: Sequence[PlannedFile]) -> list[PlannedFile]:
    """The files that the model's engine uses.

    Raises:
        DownloadError: the repository has no weights in a format that is let in.
    """
    safe = [f for f in every if is_safe_name(f.path)]
    if spec.engine == "llama_cpp":
        chosen = _one_gguf(safe)
    elif spec.engine == "faster_whisper":
        chosen = [f for f in safe if "/" not in f.path and (f.path == "model.bin" or _suffix(f) in _TEXT)]
        if not any(f.path == "model.bin" for f in chosen):
            chosen = []
    elif spec.engine == "piper":
        chosen = _one_voice(safe)
    else:
        chosen = _torch_folder(spec, safe) or _pickled_folder(spec, every, safe)
    if not chosen:
        pickled = any(f.path.lower().endswith((".bin", ".pt", ".pth", ".ckpt")) for f in every)
        why = "only as pickles, which can run code" if pickled else "in no format that its engine reads"
        raise DownloadError(
            f"{spec.source} has its weights {why}.", hint="Look for the same model in safetensors or GGUF."
        )
    return chosen


def _suffix(file: PlannedFile) -> str:
    return PurePosixPath(file.path).suffix.lower()


def _one_gguf(files: Sequence[PlannedFile]) -> list[PlannedFile]:
    """One quantisation, with all its parts; and a projector, if the model can see."""
    models = [f for f in files if _suffix(f) == ".gguf" and "mmproj" not in f.path.lower()]
    return [*_one_quantisation(models), *_one_projector(files)] if models else []


def _one_projector(files: Sequence[PlannedFile]) -> list[PlannedFile]:
    """Images need more precision than text: 8 bits if there are, else 16."""
    found = sorted((f for f in files if _suffix(f) == ".gguf" and "mmproj" in f.path.lower()), key=lambda f: f.bytes)
    fitting = (f for kind in ("Q8_0", "F16", "BF16") for f in found if kind in f.path.upper())
    return [next(fitting, found[0])] if found else []


def _one_quantisation(models: Sequence[PlannedFile]) -> list[PlannedFile]:
    for wanted in QUANTISATIONS:
        found = [f for f in models if re.search(rf"(?<![A-Z0-9_]){wanted}(?![A-Z0-9_])", f.path.upper())]
        if found:
            return _with_parts(found[0], found)
    return _with_parts(min(models, key=lambda f: f.bytes), models)


def _with_parts(first: PlannedFile, files: Sequence[PlannedFile]) -> list[PlannedFile]:
    split = re.match(r"(.*)-\d{5}-of-\d{5}\.gguf$", first.path)
    return [f for f in files if split and f.path.startswith(split[1] + "-")] or [first]


def _one_voice(files: Sequence[PlannedFile]) -> list[PlannedFile]:
    names = {f.path: f for f in files}
    voice = next((f for f in files if _suffix(f) == ".onnx" and f.path + ".json" in names), None)
    return [voice, names[voice.path + ".json"]] if voice else []


def _torch_folder(spec: ModelSpec, files: Sequence[PlannedFile]) -> list[PlannedFile]:
    """A transformers or diffusers folder: one variant of the weights, the texts, no single-file copies."""
    pipeline = any(f.path == "model_index.json" for f in files)
    weights = [f for f in files if _suffix(f) == ".safetensors" and not (pipeline and "/" not in f.path)]
    chosen: list[PlannedFile] = []
    for folder in {str(PurePosixPath(f.path).parent) for f in weights}:
        here = [f for f in weights if str(PurePosixPath(f.path).parent) == folder]
        chosen += _one_variant(here, spec.variant)
    names = {f.path for f in chosen}
    if not names:
        return []
    arrays = [f for f in files if _suffix(f) in (".npz", ".npy")]  # Bark's voices
    texts = [f for f in files if _suffix(f) in _TEXT and (not _VARIANT.search(f.path) or _indexes(f, names))]
    return [f for f in files if f in chosen or f in arrays or f in texts]


def _pickled_folder(spec: ModelSpec, every: Sequence[PlannedFile], safe: Sequence[PlannedFile]) -> list[PlannedFile]:
    """As `_torch_folder`, for a repository that has its weights only as one pickle, which will be converted."""
    weights = [f for f in every if is_convertible(spec.engine, f.path)]
    rest = [f for f in safe if _suffix(f) in (".npz", ".npy") or _suffix(f) in _TEXT]
    return weights and [*weights, *rest]


def _one_variant(files: Sequence[PlannedFile], variant: str) -> list[PlannedFile]:
    def of(name: str) -> list[PlannedFile]:
        return [f for f in files if (m := _VARIANT.search(f.path)) is not None and m[1] == name]

    plain = [f for f in files if not _VARIANT.search(f.path)]
    return (of(variant) if variant else []) or plain or of("fp16") or list(files)


def _indexes(index: PlannedFile, names: set[str]) -> bool:
    """True if an index of shards belongs to weights that were chosen."""
    variant = _VARIANT.search(index.path)
    return variant is not None and any(f".{variant[1]}" in name for name in names)
