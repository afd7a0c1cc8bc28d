"""The table of engines, and what every engine offers. Importing this imports no engine and no library.

A second engine for a modality is one file in this folder, one row here and rows in models.yaml.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device
from ..errors import CatalogError, EngineNotInstalled
from ..footprint import Footprint
from ..modalities.base import LoadOptions, Modality

__all__ = [
    "ENGINES",
    "Engine",
    "EngineRow",
    "Parkable",
    "Shrinkable",
    "Trimmable",
    "engine_class",
    "engine_row",
    "missing_packages",
]


@runtime_checkable
class Engine(Protocol):
    """A loaded model.

    Class attributes:
        modality: what it does.
        load_options: its LoadOptions class.
        concurrency: callers that may use one loaded model at a time; 0 = no limit.
        uses_torch: its load must be alone among torch work (torch patches itself process-wide while it builds a model).
        shares_rng: it draws from torch's global random generator, so such engines take turns.
    """

    modality: ClassVar[Modality]
    load_options: ClassVar[type[LoadOptions]]
    concurrency: ClassVar[int]
    uses_torch: ClassVar[bool]
    shares_rng: ClassVar[bool]

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """Bytes it will need, from file headers, and where its parts would go.

        Args:
            room_bytes: most that the device's pool can give after everything idle has been evicted. An engine that can
                place its parts in several ways picks the fastest that fits; see `Footprint.placement` and `reason`.

        Raises:
            LoadError: the files are damaged or unsafe. UnsupportedRequest: an option does not fit this model.
        """
        ...

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Load it where `footprint` said. Raises LoadError, InsufficientMemory."""
        ...

    def close(self) -> None:
        """Give everything back. Idempotent; no method may be called afterwards."""
        ...


class Trimmable(Protocol):
    """What an engine offers besides, if a loaded model can work on with less memory. Both are asked for while nobody
    uses the model, and with the manager's lock held: they must return at once."""

    @property
    def spare_bytes(self) -> Mapping[str, int]:
        """Bytes per pool, of those that `footprint` asked for, that `trim` would give up for good."""
        ...

    def trim(self) -> None:
        """Give them up: free them, and do not take them again."""
        ...


class Parkable(Protocol):
    """What an engine offers besides, if the weights of a loaded model can leave a card and wait in RAM.

    Nobody uses the model meanwhile, and only `unpark` or `close` is called after `park`.
    """

    @property
    def parked_bytes(self) -> int:
        """RAM that they would take there; 0 if this model cannot be parked. Asked for with the manager's lock held."""
        ...

    def park(self) -> None:
        """Move them to RAM and free all that the model has of the card. Raises whatever the library raises."""
        ...

    def unpark(self) -> None:
        """Bring them back to where they were, bit for bit. May be called again after it failed for want of memory."""
        ...


class Shrinkable(Protocol):
    """What an engine class offers besides, if options that somebody asked for can be lowered to fit a small memory."""

    @classmethod
    def smaller(cls, options: Any) -> Iterator[tuple[Any, str]]:
        """Load options that need less, the best first, each with what it changes in words that a user can type."""
        ...


@dataclass(frozen=True)
class EngineRow:
    """Where an engine lives and what it needs.

    Attributes:
        module, name: the class; a module with a dot is an absolute one, any other lies in this folder.
        modality: what it serves.
        extra: the pip extra that installs it.
        packages: modules that must be importable.
        requirements: what pip installs for them.
    """

    module: str
    name: str
    modality: Modality
    extra: str
    packages: tuple[str, ...]
    requirements: tuple[str, ...]


_TORCH = ("torch", "transformers", "accelerate")
_DIFFUSERS = (*_TORCH, "diffusers")

#: an application that brings an engine of its own adds a row
ENGINES: dict[str, EngineRow] = {
    "llama_cpp": EngineRow(
        "llama_cpp", "LlamaCppChat", "llm", "llm", ("llama_cpp", "jinja2"), ("llama-cpp-python>=0.3.36", "jinja2")
    ),
    "llama_cpp_vocabulary": EngineRow(
        "llama_cpp_vocabulary", "LlamaCppVocabulary", "llm", "llm", ("llama_cpp",), ("llama-cpp-python>=0.3.36",)
    ),
    "diffusers_image": EngineRow("diffusers_image", "DiffusersImage", "tti", "tti", _DIFFUSERS, _DIFFUSERS),
    "faster_whisper": EngineRow(
        "faster_whisper", "FasterWhisperTranscriber", "stt", "stt", ("faster_whisper", "av"), ("faster-whisper", "av")
    ),
    "piper": EngineRow("piper", "PiperSpeech", "tts", "piper", ("piper",), ("piper-tts",)),
    "bark": EngineRow("bark", "BarkSpeech", "tts", "tts", _TORCH, _TORCH),
    "vits": EngineRow("vits", "VitsSpeech", "tts", "tts", _TORCH, _TORCH),
    "diffusers_video": EngineRow(
        "diffusers_video",
        "DiffusersVideo",
        "ttv",
        "ttv",
        (*_DIFFUSERS, "av"),
        (*_DIFFUSERS, "av", "ftfy", "sentencepiece"),
    ),
    "musicgen": EngineRow("musicgen", "MusicgenMusic", "ttm", "ttm", _TORCH, _TORCH),
}


def engine_row(engine: str) -> EngineRow:
    """The table's row.

    Raises:
        CatalogError: there is no such engine.
    """
    row = ENGINES.get(engine)
    if row is None:
        raise CatalogError(f"There is no engine {engine!r}.", hint=f"The engines are {', '.join(ENGINES)}.")
    return row


def missing_packages(engine: str) -> list[str]:
    """Modules that this engine needs and that cannot be found; nothing is imported to find out."""
    return [name for name in engine_row(engine).packages if importlib.util.find_spec(name) is None]


@functools.cache  # only success is cached: after an install the next call looks again
def engine_class(engine: str) -> type[Any]:
    """Import an engine's file (not yet its library) and return the class, an `Engine`.

    Raises:
        EngineNotInstalled: its library is missing; names the extra. CatalogError: there is no such engine.
    """
    row = engine_row(engine)
    missing = missing_packages(engine)
    if missing:
        raise EngineNotInstalled(
            f"The engine {engine} needs what is not installed: {', '.join(missing)}.",
            hint=f"Run: pip install 'lollms-local[{row.extra}]'",
        )
    module = row.module if "." in row.module else f"{__name__}.{row.module}"
    return getattr(importlib.import_module(module), row.name)  # type: ignore[no-any-return]
