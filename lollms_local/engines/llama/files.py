"""The files of a model: which GGUF of a folder it is, its shards, adapters and projector."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from ...errors import LoadError
from ...gguf import GgufHeader, read_gguf, read_gguf_model
from ...modalities.chat import ChatLoadOptions
from .vision import check_projector, projector_workspace_bytes

__all__ = ["ModelFiles", "find_projector", "has_gpu", "model_files", "projectors"]


@dataclass(frozen=True)
class ModelFiles:
    """Checked files.

    Attributes:
        model: the (first) file of weights.
        header: its header.
        weights_bytes: tensors of all its shards.
        adapters: LoRA files and their weights.
        mmproj: the projector, if there is one and it is wanted.
        extra_bytes: tensors of adapters and projector, and the work of the latter.
    """

    model: Path
    header: GgufHeader
    weights_bytes: int
    adapters: tuple[tuple[Path, float], ...]
    mmproj: Path | None
    extra_bytes: int


def model_files(path: Path, options: ChatLoadOptions) -> ModelFiles:
    """Find and check them.

    Args:
        path: a GGUF file, or a folder with one.

    Raises:
        LoadError: there is none, one is damaged, or an adapter or projector is missing.
    """
    model = _model_file(path)
    header, weights = read_gguf_model(model)
    adapters = tuple(_adapter(text, header) for text in options.lora)
    mmproj = _mmproj(model, options.mmproj)
    extra = sum(read_gguf(adapter).weights_bytes for adapter, _ in adapters)
    if mmproj is not None:
        projector = read_gguf(mmproj)
        check_projector(projector)
        extra += projector.weights_bytes + projector_workspace_bytes(projector)
    return ModelFiles(model, header, weights, adapters, mmproj, extra)


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(p for p in path.rglob("*.gguf") if not _is_projector(p)) if path.is_dir() else []
    first = [p for p in found if "-of-" not in p.name or "-00001-of-" in p.name]
    if not first:
        raise LoadError(f"There is no GGUF model in {path}.", hint="Download the model, or give the file's path.")
    if len(first) > 1:
        names = ", ".join(p.name for p in first[:4])
        raise LoadError(f"{path} holds several models: {names}.", hint="Use the path of one of them as model name.")
    return first[0]


def _is_projector(path: Path) -> bool:
    return "mmproj" in path.name.lower()


def _adapter(text: str, header: GgufHeader) -> tuple[Path, float]:
    """ "path" or "path=weight"; the file must be an adapter for this architecture (a missing one ends the process)."""
    name, _, weight = text.rpartition("=")
    if not name:
        name, weight = text, "1"
    try:
        scale = float(weight)
    except ValueError:
        name, scale = text, 1.0
    path = Path(name).expanduser()
    if not path.is_file():
        raise LoadError(f"The LoRA adapter {path} is not there.", hint="Give the path of a GGUF adapter.")
    adapter = read_gguf(path)
    if adapter.metadata.get("general.type") != "adapter":
        raise LoadError(f"{path} is not a LoRA adapter.", hint="Convert one with llama.cpp's convert_lora_to_gguf.py.")
    if adapter.architecture != header.architecture:
        raise LoadError(
            f"The LoRA adapter {path} is for {adapter.architecture} and the model is {header.architecture}.",
            hint="Use an adapter made for this model.",
        )
    return path, scale


def _mmproj(model: Path, wanted: str) -> Path | None:
    if wanted.lower() == "none":
        return None
    if wanted:
        path = Path(wanted).expanduser()
        path = path if path.is_absolute() else model.parent / path
        if not path.is_file():
            raise LoadError(f"The projector {path} is not there.", hint="Give the path of the model's mmproj file.")
        return path
    return find_projector(model)


def find_projector(model: Path) -> Path | None:
    """The projector beside a model file, or in a model's folder: the only one there, or the one named like it."""
    folder = model if model.is_dir() else model.parent
    beside = sorted(p for p in folder.glob("*.gguf") if _is_projector(p))
    if len(beside) == 1:
        return beside[0]
    named = [p for p in beside if model.stem.lower().split(".")[0] in p.name.lower()]
    return named[0] if len(named) == 1 else None


def projectors(folder: Path) -> list[Path]:
    """All projectors in a folder of models."""
    return sorted(p for p in folder.rglob("*.gguf") if _is_projector(p)) if folder.is_dir() else []


@functools.lru_cache(maxsize=1)
def has_gpu() -> bool:
    """Whether this build of llama.cpp can put layers on a GPU."""
    from .native import library

    return bool(library().llama_supports_gpu_offload())
