"""The vocabulary of a GGUF model alone: counting tokens must neither load a model nor wait for one that writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device
from ..footprint import Footprint
from ..modalities.base import LoadOptions, Modality
from ..modalities.chat import ChatLoadOptions
from .llama.files import model_files
from .llama.native import NativeModel
from .llama.plan import VOCABULARY_BYTES_PER_TOKEN
from .llama.vocabulary import Tokens

__all__ = ["LlamaCppVocabulary"]


class LlamaCppVocabulary:
    """A model's vocabulary without its weights; a `Vocabulary`."""

    modality: ClassVar[Modality] = "llm"
    load_options: ClassVar[type[LoadOptions]] = LoadOptions
    concurrency: ClassVar[int] = 0
    uses_torch: ClassVar[bool] = False
    shares_rng: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self._model = NativeModel(path, vocab_only=True)
        self._tokens = Tokens(self._model)

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """From the number of tokens."""
        header = model_files(path, ChatLoadOptions(mmproj="none")).header
        size = header.vocabulary_size * VOCABULARY_BYTES_PER_TOKEN
        ram = {"weights_bytes": size} if device.pool == "ram" else {"weights_bytes": 0, "host_bytes": size}
        return Footprint(**ram, reason="Vocabulary only.")

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Read it."""
        return cls(model_files(path, ChatLoadOptions(mmproj="none")).model)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text; nothing is added."""
        return self._tokens.tokenize(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return self._tokens.detokenize(tokens)

    def close(self) -> None:
        """Give it back. Idempotent."""
        self._model.close()
