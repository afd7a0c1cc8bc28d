"""The library: its log, its errors, loading models and adapters, and an abort flag that needs no Python to be read."""

from __future__ import annotations

import collections
import ctypes
import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import GenerationError, LoadError

__all__ = ["KV_TYPES", "AbortFlag", "NativeModel", "library", "mapped_errors", "quiet_logger"]

log = logging.getLogger(__name__)

#: name of a cache's number format -> ggml type number
KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}

_complaints: collections.deque[str] = collections.deque(maxlen=8)
_WARN, _ERROR = 3, 4  # ggml_log_level
_start_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _started() -> Any:
    import llama_cpp.llama_cpp as lib

    @lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def on_log(level: int, text: bytes | None, user_data: Any) -> None:
        line = (text or b"").decode("utf-8", errors="replace").strip()
        if level in (_WARN, _ERROR) and line:
            _complaints.append(line)
        if line:
            log.debug("%s", line)

    # llama-cpp-python's own callback prints to stderr; this one must live as long as the library
    lib.llama_log_set(on_log, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib, on_log


def library() -> Any:
    """The ctypes module of llama.cpp, initialised; imported on first use."""
    with _start_lock:
        return _started()[0]


def quiet_logger(set_log: Any) -> None:
    """Send another of the library's logs where its own goes, instead of to stderr."""
    library()
    set_log(_started()[1], ctypes.c_void_p(0))


def complaint() -> str:
    """The latest things that the library complained about, for an error's message."""
    lines = [" ".join(line.split()) for line in _complaints if line]
    _complaints.clear()
    return "; ".join(lines[-2:])[:300]


@contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """llama.cpp's own failures as ours. Python mistakes pass through."""
    try:
        yield
    except (RuntimeError, AssertionError, OSError) as exc:
        raise GenerationError(f"llama.cpp failed while {doing}: {exc}.") from exc


class AbortFlag:
    """A byte that makes llama.cpp stop computing within milliseconds once it is set, from any thread.

    The library asks a callback once per graph node, several hundred times per token. A Python callback would fight for
    the interpreter each time; so the callback is C's own `strlen`, and its argument is our byte: "" is false,
    "\\x01" is true.
    """

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)

    def set(self) -> None:
        self._text[0] = b"\x01"

    def clear(self) -> None:
        self._text[0] = b"\x00"

    def is_set(self) -> bool:
        return self._text[0] != b"\x00"

    def attach(self, context: Any) -> None:
        """Make a context obey this flag. The flag must outlive the context."""
        lib = library()
        lib.llama_set_abort_callback(context, _strlen(), ctypes.cast(self._text, ctypes.c_void_p))


@functools.lru_cache(maxsize=1)
def _strlen() -> Any:
    import sys

    libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    return ctypes.cast(libc.strlen, library().ggml_abort_callback)


class NativeModel:
    """Weights and vocabulary in memory.

    Args:
        path: the (first) GGUF file, already checked by `gguf`.
        n_gpu_layers, split_mode, main_gpu, tensor_split, use_mmap, use_mlock: as the library's.
        vocab_only: no weights.

    Raises:
        LoadError: the library refused the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_gpu_layers: int = 0,
        split_mode: str = "layer",
        main_gpu: int = 0,
        tensor_split: tuple[float, ...] = (),
        use_mmap: bool = True,
        use_mlock: bool = False,
        vocab_only: bool = False,
    ) -> None:
        lib = self.lib = library()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.split_mode = {"none": 0, "layer": 1, "row": 2}[split_mode]
        params.main_gpu = main_gpu
        params.vocab_only = vocab_only
        params.load_mode = {
            (False, False): lib.LLAMA_LOAD_MODE_NONE,
            (True, False): lib.LLAMA_LOAD_MODE_MMAP,
            (False, True): lib.LLAMA_LOAD_MODE_MLOCK,
            (True, True): lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
        }[use_mmap, use_mlock]
        shares = (ctypes.c_float * lib.llama_max_devices())(*tensor_split[: lib.llama_max_devices()])
        if tensor_split:
            params.tensor_split = shares
        _complaints.clear()
        self.handle = lib.llama_model_load_from_file(str(path).encode("utf-8"), params)
        if not self.handle:
            raise LoadError(
                f"llama.cpp refused the file {path}: {complaint() or 'it gave no reason'}.",
                hint="Download the model again, or a newer llama-cpp-python if the architecture is new.",
            )
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self._adapters: list[Any] = []

    def adapter(self, path: Path) -> Any:
        """Load a LoRA adapter for this model.

        Raises:
            LoadError: the library refused it. (A file that is not there would end the process later.)
        """
        handle = self.lib.llama_adapter_lora_init(self.handle, str(path).encode("utf-8")) if path.is_file() else None
        if not handle:
            raise LoadError(
                f"The LoRA adapter {path} cannot be used: {complaint() or 'there is no such file'}.",
                hint="It must be a GGUF adapter made for this very model.",
            )
        self._adapters.append(handle)
        return handle

    def close(self) -> None:
        """Free it; every context over it must have been freed before. Idempotent."""
        handle, self.handle = self.handle, None
        if handle:
            self._adapters.clear()  # freed with the model
            self.vocab = None
            self.lib.llama_model_free(handle)
