"""What a GGUF model may claim: bounds and rules that llama.cpp takes for granted, or ends the process over."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LoadError

__all__ = ["STRING", "TOKENS", "ArrayInfo", "check_model", "check_tokens", "check_vocabulary", "damaged"]

#: number of the metadata type "text"
STRING = 8
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class ArrayInfo:
    """A metadata array that was counted and not kept."""

    kind: int
    count: int


def damaged(path: Path, why: str) -> LoadError:
    """The error for a file that contradicts itself."""
    return LoadError(f"The file {path} is damaged: {why}.", hint="Remove the model and download it again.")


#: key of the architecture's section -> (least, most): outside of these, llama.cpp divides by zero or fills the memory
_LIMITS = {
    "block_count": (1, 2048),
    "embedding_length": (1, 1 << 20),
    "attention.head_count": (0, 1 << 16),
    "context_length": (1, 1 << 30),
    "feed_forward_length": (0, 1 << 24),
    "attention.key_length": (0, 1 << 16),
    "attention.value_length": (0, 1 << 16),
    "expert_count": (0, 1 << 14),
    "rope.dimension_count": (0, 1 << 16),
    "vocab_size": (0, 1 << 24),
}


def check_model(path: Path, architecture: str, metadata: Mapping[str, Any]) -> None:
    """Sizes within reason. llama.cpp checks the rest and fails without harm."""
    if not architecture:
        raise damaged(path, "it does not name an architecture")
    if f"{architecture}.block_count" not in metadata:
        raise LoadError(
            f"The file {path.name} is a {architecture} file, not a language model.",
            hint="A projector (mmproj) belongs beside the model it was made for.",
        )
    for key, (least, most) in _LIMITS.items():
        value = metadata.get(f"{architecture}.{key}", least)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
                raise damaged(path, f"{architecture}.{key} is {number!r}")


def check_tokens(path: Path, tokens: Any, buffer: bytearray, at: int) -> None:
    """No two tokens are spelled alike: llama.cpp ends the process over that.

    Args:
        buffer, at: where the list's first text begins, with its length.
    """
    if not isinstance(tokens, ArrayInfo) or tokens.kind != STRING:
        raise damaged(path, "its vocabulary is not a list of texts")
    length_at = struct.Struct("<Q").unpack_from
    seen = set()
    for number in range(tokens.count):
        start = at + 8
        at = start + length_at(buffer, at)[0]
        text = bytes(buffer[start:at]).split(b"\0", 1)[0]  # it reads them as C does
        seen.add(text or b"[EMPTY_%d]" % number)  # as it names those without a text
    if len(seen) < tokens.count:
        raise damaged(path, "two tokens of its vocabulary are the same")


#: lists beside the vocabulary -> types of four bytes that their values may have
_PER_TOKEN = {"tokenizer.ggml.scores": (6,), "tokenizer.ggml.token_type": (4, 5)}


def check_vocabulary(path: Path, metadata: Mapping[str, Any]) -> None:
    """Such lists have a value per token: llama.cpp reads as many without looking."""
    tokens = metadata.get(TOKENS)
    for key, kinds in _PER_TOKEN.items():
        values = metadata.get(key)
        if values is None or tokens is None:
            continue
        if not isinstance(values, ArrayInfo) or values.kind not in kinds or values.count < tokens.count:
            raise damaged(path, f"{key} has not a number for each of {tokens.count} tokens")
