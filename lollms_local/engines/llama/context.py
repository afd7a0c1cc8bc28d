"""One KV cache: read tokens into it, truncate it, save and restore it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...cores import CORES
from ...errors import Cancelled, GenerationError, InsufficientMemory, LoadError
from ...modalities.base import Control
from ...modalities.chat import ChatLoadOptions
from .native import KV_TYPES, AbortFlag, NativeModel, complaint

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Context", "State"]

_ABORTED = 2
_ROPE = {"auto": -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_FLASH = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True)
class State:
    """A saved cache: the tokens it stands for and the library's own bytes."""

    tokens: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)


class Context:
    """A cache of one sequence over a model.

    Attributes:
        n_ctx: tokens it can hold.
        tokens: what is in it now; negative numbers stand for an image's positions.
        n_batch, n_ubatch: tokens that are handed over at once, and computed at once.

    Raises:
        LoadError: the library refused the combination of options.
    """

    def __init__(
        self,
        model: NativeModel,
        options: ChatLoadOptions,
        *,
        n_ctx: int,
        n_threads: int,
        n_threads_batch: int,
        shares_cores: bool = False,
        sequences: int = 1,
        pooling: int | None = None,
    ) -> None:
        lib = self.lib = model.lib
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_ctx if pooling is not None else min(n_ctx, options.n_batch)
        # pooled models look both ways: a text must be computed in one piece
        params.n_ubatch = params.n_batch if pooling is not None else min(params.n_batch, options.n_ubatch)
        params.n_seq_max = sequences
        params.kv_unified = True
        params.n_threads, params.n_threads_batch = n_threads, n_threads_batch
        params.rope_scaling_type = _ROPE[options.rope_scaling]
        params.rope_freq_base, params.rope_freq_scale = options.rope_freq_base, options.rope_freq_scale
        params.yarn_orig_ctx = options.yarn_orig_ctx
        params.flash_attn_type = _FLASH[options.flash_attention]
        params.type_k, params.type_v = KV_TYPES[options.kv_type_k], KV_TYPES[options.kv_type_v]
        params.offload_kqv = options.offload_kqv
        params.no_perf = True
        params.embeddings = pooling is not None
        params.pooling_type = 0 if pooling is None else pooling
        complaint()
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError(
                f"llama.cpp could not make a context of {n_ctx} tokens: {complaint() or 'it gave no reason'}.",
                hint="A quantised kv_type_v needs flash_attention on; a smaller ctx_size needs less memory.",
            )
        self.n_ctx = int(lib.llama_n_ctx(self.handle))
        self.n_batch = int(lib.llama_n_batch(self.handle))
        self.n_ubatch = int(lib.llama_n_ubatch(self.handle))
        self.tokens: list[int] = []
        self._shares_cores = shares_cores
        self._wanted, self._threads = n_threads, n_threads
        self._memory = lib.llama_get_memory(self.handle)
        self.abort = AbortFlag()
        self.abort.attach(self.handle)
        self._batch = _Batch(lib, self.n_batch)

    def use_adapters(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Apply LoRA adapters with their weights."""
        handles = (self.lib.llama_adapter_lora_p_ctypes * len(adapters))(*(a for a, _ in adapters))
        scales = (ctypes.c_float * len(adapters))(*(s for _, s in adapters))
        if self.lib.llama_set_adapters_lora(self.handle, handles, len(adapters), scales):
            raise LoadError("llama.cpp could not apply the LoRA adapters.", hint="Use adapters made for this model.")

    # --- reading tokens in ------------------------------------------------------------------------------------

    def read(self, tokens: Sequence[int], control: Control, *, report: bool = False, all_logits: bool = False) -> None:
        """Append tokens; afterwards the last one's logits (or all of them) can be sampled.

        Raises:
            Cancelled: `control` said so, between or during computations. GenerationError: the library failed.
            Either way `tokens` of this context is what its cache holds.
        """
        total = len(tokens)
        for start in range(0, total, self.n_batch):
            part = tokens[start : start + self.n_batch]
            control.check()
            self._decode(part, all_logits)
            if report:
                control.report(start + len(part), total, "token", "prompt")

    def _decode(self, part: Sequence[int], all_logits: bool) -> None:
        if self._shares_cores:
            self._take_share()
        code = self.lib.llama_decode(self.handle, self._batch.filled(part, len(self.tokens), all_logits))
        if code == 0:
            self.tokens.extend(part)
            return
        self.truncate(len(self.tokens))  # what was computed before it stopped
        if code == _ABORTED or self.abort.is_set():
            raise Cancelled()
        reason = complaint()
        if code == -2 or "alloc" in reason:
            raise InsufficientMemory(
                f"llama.cpp ran out of memory while it read {len(part)} tokens: {reason or code}.",
                hint="Use a smaller ctx_size, n_ubatch or n_gpu_layers.",
            )
        raise GenerationError(f"llama.cpp could not read {len(part)} tokens (code {code}): {reason}.")

    def _take_share(self) -> None:
        """Use no more cores than other jobs of this process leave: threads that wait for a core spin on it."""
        threads = CORES.share(self._wanted)
        if threads != self._threads:
            self.lib.llama_set_n_threads(self.handle, threads, threads)
            self._threads = threads

    def truncate(self, length: int) -> int:
        """Keep the first `length` tokens, if the cache can; returns how many are left (recurrent models: 0 or all)."""
        if self._memory is None:
            return 0
        known = min(length, len(self.tokens))
        if not self.lib.llama_memory_seq_rm(self._memory, 0, known, -1):
            self.clear()
        del self.tokens[known:]
        return len(self.tokens)

    def clear(self) -> None:
        """Forget everything."""
        if self._memory is not None:
            self.lib.llama_memory_clear(self._memory, True)
        self.tokens.clear()

    # --- states -----------------------------------------------------------------------------------------------

    def save(self) -> State | None:
        """A copy of the cache in RAM; None if the library cannot give one."""
        import numpy as np

        size = int(self.lib.llama_state_seq_get_size(self.handle, 0))
        if size <= 0:
            return None
        data = np.empty(size, dtype=np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = int(self.lib.llama_state_seq_get_data(self.handle, pointer, size, 0))
        return State(tuple(self.tokens), data) if written == size else None

    def restore(self, state: State) -> bool:
        """Replace the cache by a saved one. False, and the cache is empty, if the library refuses it."""
        self.clear()
        pointer = state.data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not self.lib.llama_state_seq_set_data(self.handle, pointer, state.data.nbytes, 0):
            self.clear()
            return False
        self.tokens = list(state.tokens)
        return True

    def close(self) -> None:
        """Free it. Idempotent."""
        handle, self.handle = self.handle, None
        if handle:
            self._memory = None
            self.lib.llama_free(handle)


class _Batch:
    """Arrays that the library reads a batch from; made once, because one is needed per token."""

    def __init__(self, lib: Any, size: int) -> None:
        self.token = (ctypes.c_int32 * size)()
        self.pos = (ctypes.c_int32 * size)()
        self.n_seq_id = (ctypes.c_int32 * size)(*([1] * size))
        self._zero = (ctypes.c_int32 * 1)(0)
        row = ctypes.cast(self._zero, ctypes.POINTER(ctypes.c_int32))
        self.seq_id = (ctypes.POINTER(ctypes.c_int32) * size)(*([row] * size))
        self.logits = (ctypes.c_int8 * size)()
        self.batch = lib.llama_batch(
            n_tokens=0, token=self.token, embd=None, pos=self.pos, n_seq_id=self.n_seq_id, seq_id=self.seq_id,
            logits=self.logits,
        )  # fmt: skip

    def filled(self, tokens: Sequence[int], start: int, all_logits: bool) -> Any:
        count = len(tokens)
        self.token[:count] = list(tokens)
        self.pos[:count] = list(range(start, start + count))
        self.logits[:count] = [int(all_logits)] * count
        self.logits[count - 1] = 1
        self.batch.n_tokens = count
        return self.batch
