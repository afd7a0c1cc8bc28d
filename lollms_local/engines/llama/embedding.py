"""Vectors of texts: pooled by the model's own rule, or the mean over the tokens where it has none."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import GenerationError, UnsupportedRequest
from ...modalities.base import Control
from ...modalities.chat import ChatLoadOptions
from .context import Context
from .generation import obeying
from .native import NativeModel
from .vocabulary import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MAX_TOKENS", "Embedder"]

#: longest text, and tokens of all texts of one computation
MAX_TOKENS = 2048
MAX_TEXTS = 32
_MEAN = 1


class Embedder:
    """A context for vectors over an already loaded model, beside the one for chat.

    Args:
        pooling: the library's number of a rule; the model's own, or 1 = mean.
    """

    def __init__(
        self, model: NativeModel, vocabulary: Tokens, options: ChatLoadOptions, *, trained_ctx: int, pooling: int | None
    ) -> None:
        self._lib = model.lib
        self._model, self._vocabulary = model, vocabulary
        self._context = Context(
            model,
            options,
            n_ctx=min(MAX_TOKENS, trained_ctx),
            n_threads=options.n_threads,
            n_threads_batch=options.n_threads_batch or options.n_threads,
            sequences=MAX_TEXTS,
            pooling=_MEAN if pooling is None else pooling,
        )
        self._size = int(self._lib.llama_model_n_embd(model.handle))
        self._encodes = bool(
            self._lib.llama_model_has_encoder(model.handle) and not self._lib.llama_model_has_decoder(model.handle)
        )

    def embed(self, texts: Sequence[str], control: Control, *, normalise: bool) -> list[list[float]]:
        """One vector per text, [len(texts)][embedding size].

        Raises:
            UnsupportedRequest: a text is longer than the context, or empty.
        """
        rows = [self._tokens(number, text) for number, text in enumerate(texts)]
        vectors: list[list[float]] = []
        start = 0
        with obeying(self._context, control):
            while start < len(rows):
                end, total = start, 0
                while end < len(rows) and end - start < MAX_TEXTS and total + len(rows[end]) <= self._context.n_batch:
                    total += len(rows[end])
                    end += 1
                control.report(start, len(rows), "text", "embed")
                vectors += self._together(rows[start:end], normalise)
                start = end
        return vectors

    def _tokens(self, number: int, text: str) -> list[int]:
        tokens = self._vocabulary.tokenize(text, special=False, add_bos=True)
        if not tokens:
            raise UnsupportedRequest(f"Text {number} is empty; there is nothing to embed.")
        if len(tokens) > self._context.n_batch:
            raise UnsupportedRequest(
                f"Text {number} has {len(tokens)} tokens; at most {self._context.n_batch} can be embedded at once.",
                hint="Split it in parts.",
            )
        return tokens

    def _together(self, rows: Sequence[Sequence[int]], normalise: bool) -> list[list[float]]:
        import numpy as np

        lib, context = self._lib, self._context
        context.clear()
        batch = _joined(lib, rows)
        code = (lib.llama_encode if self._encodes else lib.llama_decode)(context.handle, batch[0])
        if code:
            raise GenerationError(f"llama.cpp could not embed {len(rows)} texts (code {code}).")
        vectors = []
        for sequence in range(len(rows)):
            pointer = lib.llama_get_embeddings_seq(context.handle, sequence)
            if not pointer:
                raise GenerationError("llama.cpp gave no embedding.")
            vectors.append(_scaled(np.ctypeslib.as_array(pointer, shape=(self._size,)), normalise))
        context.clear()
        return vectors

    def close(self) -> None:
        self._context.close()


def _joined(lib: Any, rows: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    """A batch of several sequences, with the arrays that must live as long as it."""
    total = sum(map(len, rows))
    ids = [(ctypes.c_int32 * 1)(n) for n in range(len(rows))]
    token = (ctypes.c_int32 * total)(*(t for row in rows for t in row))
    pos = (ctypes.c_int32 * total)(*(p for row in rows for p in range(len(row))))
    count = (ctypes.c_int32 * total)(*([1] * total))
    pointers = [ctypes.cast(ids[n], ctypes.POINTER(ctypes.c_int32)) for n, row in enumerate(rows) for _ in row]
    seq = (ctypes.POINTER(ctypes.c_int32) * total)(*pointers)
    logits = (ctypes.c_int8 * total)(*([1] * total))
    batch = lib.llama_batch(n_tokens=total, token=token, embd=None, pos=pos, n_seq_id=count, seq_id=seq, logits=logits)
    return batch, ids, token, pos, count, seq, logits


def _scaled(vector: npt.NDArray[np.float32], normalise: bool) -> list[float]:
    values = [float(v) for v in vector]
    length = math.sqrt(sum(v * v for v in values)) if normalise else 1.0
    if not math.isfinite(length):
        raise GenerationError("The embedding is not a finite vector.", hint="Use another model.")
    return [v / length for v in values] if length else values
