"""Text to tokens and back, over a loaded vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from ...errors import GenerationError, UnsupportedRequest
from .native import NativeModel

__all__ = ["Tokens"]

#: texts that steer how an answer is read; where one is a special token it is written out, unlike other special tokens
MARKERS = (
    "<think>", "</think>", "<thinking>", "</thinking>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>",
    "[TOOL_CALLS]", "<|python_tag|>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|tool_call|>",
)  # fmt: skip


class Tokens:
    """A model's vocabulary. Its methods only read, so threads may share it."""

    def __init__(self, model: NativeModel) -> None:
        self._lib: Any = model.lib
        self._vocab = model.vocab
        self.size = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self._written = {ids[0] for text in MARKERS if len(ids := self.tokenize(text)) == 1}

    def tokenize(self, text: str, *, special: bool = True, add_bos: bool = False) -> list[int]:
        """Tokens of a text.

        Args:
            text: any text.
            special: read special tokens that are spelled in it ("<|im_end|>") as such.
            add_bos: start as the model wants its input to start.

        Raises:
            UnsupportedRequest: the text has half a surrogate pair.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise UnsupportedRequest(
                "The text holds half of a surrogate pair, which no tokenizer can read.",
                hint="Decode the input with errors='replace' first.",
            ) from exc
        room = len(data) + 8  # a token has at least one byte; the vocabulary may add one at each end
        buffer = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, room, add_bos, special)
        if count < 0:  # a normalising tokenizer can need more
            buffer = (ctypes.c_int32 * -count)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, -count, add_bos, special)
        if count < 0:
            raise GenerationError(f"llama.cpp could not tokenize a text of {len(data)} bytes.")
        return buffer[:count]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of one token: possibly part of a character; nothing for a special token unless it is wanted."""
        wanted = special or token in self._written
        size = 64
        buffer = ctypes.create_string_buffer(size)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, wanted)
        if count < 0:
            size = -count
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, wanted)
        return buffer.raw[: max(0, count)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included. Numbers outside the vocabulary are refused."""
        bad = next((t for t in tokens if not 0 <= int(t) < self.size), None)
        if bad is not None:
            raise UnsupportedRequest(f"There is no token {bad}: the vocabulary has {self.size}.")
        return b"".join(self.piece(int(t), special=True) for t in tokens).decode("utf-8", errors="replace")

    def text_of(self, token: int) -> str:
        """How the vocabulary spells a token, for the template's `bos_token`; "" if there is none."""
        return self.piece(token, special=True).decode("utf-8", errors="replace") if token >= 0 else ""

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Whether the token is markup rather than text."""
        return bool(self._lib.llama_vocab_is_control(self._vocab, token))

    @property
    def bos(self) -> int:
        return int(self._lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        return int(self._lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants its input to begin with the BOS token."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))
