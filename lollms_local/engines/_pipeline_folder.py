"""A pipeline's folder, judged by its names and headers before diffusers sees it: nothing is loaded here.

What its index names, which weight files would be read, whether their headers are whole, how many bytes they will take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import EngineNotInstalled, LoadError
from ..footprint import read_safetensors, safetensors_bytes, weight_files
from ._torch import reject_absurd_config

__all__ = ["DTYPE_WIDTH", "LIBRARIES", "Part", "PipelineFolder", "inspect_config", "inspect_folder", "inspect_part"]

#: bytes per number
DTYPE_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
#: libraries whose classes an index may name; a pipeline's own package inside diffusers (safety checkers) is the third
LIBRARIES = ("diffusers", "transformers")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Part:
    """One component of a pipeline that has weights.

    Attributes:
        name: e.g. "unet".
        library: "diffusers", "transformers", or a pipeline's package inside diffusers.
        class_name: e.g. "UNet2DConditionModel".
        files: the safetensors files that will be read.
        variant: of those files, e.g. "fp16"; "" = plain.
        home: its folder.
    """

    name: str
    library: str
    class_name: str
    files: tuple[Path, ...]
    variant: str
    home: Path

    def nbytes(self, dtype: str, *, on_cuda: bool = False) -> int:
        """Exact bytes of its tensors once they are loaded in `dtype`; with `on_cuda`, those that torch reserves."""
        return sum(safetensors_bytes(file, DTYPE_WIDTH[dtype], on_cuda=on_cuda) for file in self.files)


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that was judged: its pipeline's class and the parts that have weights.

    Attributes:
        path: the folder.
        class_name: e.g. "StableDiffusionPipeline".
        parts: in the order of the index.
        classes: class name of every row of the index, of those without weights too.
    """

    path: Path
    class_name: str
    parts: tuple[Part, ...]
    classes: Mapping[str, str] = field(default_factory=dict)

    def part(self, *names: str) -> Part | None:
        """The first part of one of these names."""
        return next((part for name in names for part in self.parts if part.name == name), None)

    def part_bytes(
        self, dtype: str, dtypes: Mapping[str, str] = MappingProxyType({}), *, on_cuda: bool = False
    ) -> dict[str, int]:
        """Bytes of each part, loaded in `dtype` or in the part's own of `dtypes`; see `Part.nbytes`."""
        return {part.name: part.nbytes(dtypes.get(part.name, dtype), on_cuda=on_cuda) for part in self.parts}

    def config(self, name: str) -> dict[str, Any]:
        """A part's own configuration ({} where it has none)."""
        part = self.part(name)
        home = part.home if part is not None else self.path / name
        for file in ("config.json", "scheduler_config.json"):
            if (home / file).is_file():
                return _read_object(home / file)
        return {}


def inspect_folder(folder: Path, variant: str = "", *, replaced: frozenset[str] = frozenset()) -> PipelineFolder:
    """Judge a pipeline's folder by its names and headers; nothing is loaded, and diffusers is not imported.

    Args:
        folder: as diffusers saves one, with a ``model_index.json``.
        variant: weights to prefer, e.g. "fp16"; a part without it is read from its plain files, and vice versa.
        replaced: parts whose weights come from elsewhere: theirs need not be here.

    Raises:
        LoadError: it is no pipeline, asks for code of its own, or weights are pickled, missing or damaged.
    """
    index = _read_index(folder)
    parts, classes = [], {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list):
            continue
        part = _judge_entry(folder, name, entry, variant, replaced)
        if part is not None:
            parts.append(part)
        if entry[1]:
            classes[name] = str(entry[1])
    if not parts and not replaced:
        raise LoadError(f"The pipeline in {folder} names no part that has weights.", hint="Download the model again.")
    return PipelineFolder(folder, str(index["_class_name"]), tuple(parts), classes)


def inspect_config(folder: Path) -> PipelineFolder:
    """Judge a pipeline's folder that brings json and tokenizers only: its weights come from a single file.

    Raises:
        LoadError: as `inspect_folder`.
    """
    return inspect_folder(folder, replaced=frozenset(_read_index(folder)))


def inspect_part(home: Path, name: str) -> PipelineFolder:
    """Judge one part by itself, e.g. a VAE to use instead of a pipeline's own.

    Args:
        home: its folder, with a config.json of diffusers.
        name: what it is in the pipeline.

    Raises:
        LoadError: its config names no class, or weights are pickled, missing or damaged.
    """
    reject_absurd_config(home)
    class_name = _read_object(home / "config.json").get("_class_name")
    if not isinstance(class_name, str):
        raise LoadError(f"{home / 'config.json'} names no class of diffusers.", hint="Check the folder.")
    files = _weight_files(home, "")
    for file in files:
        read_safetensors(file)
    part = Part(name, "diffusers", class_name, files, _variant_of(files[0]), home)
    return PipelineFolder(home.parent, "", (part,), {name: class_name})


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.is_file():
        raise LoadError(
            f"{folder} is not a diffusers pipeline: it has no model_index.json.",
            hint="Give the folder that holds model_index.json, or a single .safetensors checkpoint.",
        )
    index = _read_object(file)
    name = index.get("_class_name")
    if isinstance(name, list):
        raise LoadError(
            f"The pipeline in {folder} needs code of its own ({name[0]}), which is never run.",
            hint="Choose a model that the installed diffusers supports by itself.",
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise LoadError(f"{file} names no pipeline class.", hint="Remove the model and download it again.")
    return index


def _judge_entry(folder: Path, name: str, entry: list[Any], variant: str, replaced: frozenset[str]) -> Part | None:
    """One row of the index; None for a part without weights."""
    if len(entry) != 2:
        raise LoadError(
            f"The row {name!r} of {folder / 'model_index.json'} is damaged.", hint="Download the model again."
        )
    library, class_name = entry
    if library is None or class_name is None:
        return None
    own = not isinstance(library, str) or (library not in LIBRARIES and not _is_diffusers_package(library))
    if own or not str(class_name).isidentifier() or Path(name).name != name or any(folder.glob(f"{name}/*.py")):
        raise LoadError(
            f"The part {name} of {folder.name} needs code from outside diffusers and transformers "
            f"({library}.{class_name}), which is never run.",
            hint="Choose a model that the installed diffusers supports by itself.",
        )
    home = folder / name
    if name in replaced or not (home / "config.json").is_file() or _has_no_weights(str(class_name)):
        return None
    reject_absurd_config(home)
    files = _weight_files(home, variant)
    for file in files:
        read_safetensors(file)
    return Part(name, library, class_name, files, _variant_of(files[0]), home)


def _is_diffusers_package(library: str) -> bool:
    """A pipeline's package inside diffusers, e.g. "stable_diffusion"; looked up on disk: an import takes seconds."""
    import importlib.util

    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise EngineNotInstalled("The library diffusers is not installed.", hint="Run: pip install 'lollms-local[tti]'")
    pipelines = Path(spec.origin).parent / "pipelines"
    return library.isidentifier() and ((pipelines / library).is_dir() or (pipelines / "deprecated" / library).is_dir())


def _has_no_weights(class_name: str) -> bool:
    return class_name.endswith(("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "FeatureExtractor"))


def _weight_files(home: Path, variant: str) -> tuple[Path, ...]:
    try:
        return tuple(weight_files(home, variant))
    except LoadError as exc:
        pickled = sorted(p.name for p in home.iterdir() if p.suffix in _PICKLED)
        if not pickled:
            raise
        raise LoadError(
            f"The part {home.name} of {home.parent.name} has only pickled weights ({pickled[0]}), which can run code "
            "and are never loaded.",
            hint="Get the model's .safetensors files, or convert it on a machine you can lose.",
        ) from exc


def _variant_of(file: Path) -> str:
    """ "fp16" of "model.fp16.safetensors" and of "model.fp16-00001-of-00002.safetensors"."""
    middle = file.name.split(".")[1:-1]
    return middle[0].split("-")[0] if middle else ""


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise LoadError(f"{file} cannot be read as JSON.", hint="Remove the model and download it again.") from exc
    if not isinstance(data, dict):
        raise LoadError(f"{file} is damaged: it holds no object.", hint="Remove the model and download it again.")
    return data
