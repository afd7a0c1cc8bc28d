"""What doctor says of llama.cpp's native libraries.

A llama-cpp-python whose libraries carry a C++ runtime of their own (linked with -static-libstdc++) ends the process as
soon as torch, which brings the shared one, is in it: a segmentation fault in std::codecvt inside llama_model_load, or
at `import torch`. Seen on a machine with a GPU; with the shared libstdc++.so.6 the same source works.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..elf import needed_libraries

__all__ = ["MEND", "RuntimeFinding", "gpu_backends", "llama_libraries", "look_at_runtime", "needs_cublas"]

#: backends of ggml that compute on a card, by the name of their library
GPU_BACKENDS = ("cuda", "hip", "vulkan", "sycl", "musa", "metal")

#: the C++ runtimes that a library can share with others
SHARED = ("libstdc++.so.6", "libc++.so.1")
MEND = (
    'CMAKE_ARGS="-DCMAKE_SHARED_LINKER_FLAGS=-shared-libgcc" pip install --no-cache-dir --force-reinstall '
    "--no-binary llama-cpp-python llama-cpp-python  (add your other flags, such as -DGGML_CUDA=on; first take "
    "-static-libstdc++ out of LDFLAGS, CMAKE_ARGS or the compiler's wrapper)"
)


@dataclass(frozen=True)
class RuntimeFinding:
    """How the libraries get their C++ runtime.

    Attributes:
        kind: "shared", "static", or "unknown" (no library could be read).
        detail: in words.
    """

    kind: Literal["shared", "static", "unknown"]
    detail: str


def llama_libraries() -> list[Path]:
    """The native C++ libraries of llama-cpp-python on Linux; nothing is imported. Empty where there are none."""
    if platform.system() != "Linux":
        return []
    found = importlib.util.find_spec("llama_cpp")
    places = list(found.submodule_search_locations or ()) if found else []
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    folder = Path(given) if given else Path(places[0]) / "lib" if places else None
    if folder is None or not folder.is_dir():
        return []
    real = {p.resolve() for pattern in ("libllama*.so*", "libggml*.so*") for p in folder.glob(pattern)}
    return sorted(p for p in real if p.is_file())


def look_at_runtime(libraries: Sequence[Path]) -> RuntimeFinding:
    """Read what each asks for."""
    asked: dict[str, list[str]] = {}
    for path in libraries:
        try:
            names = needed_libraries(path)
        except OSError:
            names = None
        if names is not None:
            asked[path.name] = names
    if not asked:
        return RuntimeFinding("unknown", "no library of llama.cpp could be read as an ELF file")
    sharing = [name for names in asked.values() for name in names if name in SHARED]
    if sharing:
        return RuntimeFinding("shared", f"{sharing[0]}, shared with other libraries")
    return RuntimeFinding("static", f"{', '.join(sorted(asked))} carry a C++ runtime of their own")


def gpu_backends(libraries: Sequence[Path]) -> list[str]:
    """Which cards llama.cpp was built for; empty = for the CPU only.

    Where ggml's backends are not libraries of their own, the one library asks for the card's own (libcuda.so.1 ...).
    """
    names = [path.name for path in libraries]
    for path in libraries:
        try:
            names += needed_libraries(path) or []
        except OSError:
            continue
    asked = {"cuda": ("libcuda.so", "libcudart.so", "libcublas.so"), "hip": ("libamdhip64.so",)}
    marks = {kind: (f"ggml-{kind}", *asked.get(kind, ())) for kind in GPU_BACKENDS}
    return [kind for kind, words in marks.items() if any(word in name for name in names for word in words)]


def needs_cublas() -> bool:
    """True if faster-whisper is here and cuBLAS 12, without which CTranslate2 does not run on a card, is nowhere."""
    if platform.system() != "Linux" or importlib.util.find_spec("ctranslate2") is None:
        return False
    inside = [Path(folder) / "nvidia" / "cublas" / "lib" / "libcublas.so.12" for folder in sys.path]
    if any(path.is_file() for path in inside):
        return False
    places = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), "/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu"]
    places += ["/usr/lib64", "/usr/lib/aarch64-linux-gnu", "/opt/cuda/lib64"]
    return not any((Path(place) / "libcublas.so.12").exists() for place in places if place)
