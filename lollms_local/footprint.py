"""Bytes that a model will need, read from the headers of its files before anything is loaded."""

from __future__ import annotations

import bisect
import itertools
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LoadError

__all__ = [
    "Footprint",
    "TensorEntry",
    "cuda_reserved_bytes",
    "folder_weights_bytes",
    "read_safetensors",
    "safetensors_bytes",
    "weight_files",
]

#: longest header that the format allows (safetensors' own limit)
MAX_HEADER_BYTES = 100_000_000

#: bits per element, and whether a load with another dtype converts it
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_CONVERTED = {"F16", "BF16", "F32", "F64"}


@dataclass(frozen=True)
class Footprint:
    """What a model will take, and where its parts will go.

    Attributes:
        weights_bytes: held in the device's pool as long as the model is loaded.
        workspace_bytes: the most that generation adds in the same pool (KV cache, activations).
        host_bytes: held in RAM besides, when the device's pool is not RAM (offloaded layers, parked parts).
        placement: the engine's own plan, handed back to its `load`; e.g. the number of layers on the GPU.
        reason: why this plan, and what would change it, in words.
    """

    weights_bytes: int
    workspace_bytes: int = 0
    host_bytes: int = 0
    placement: Any = None
    reason: str = ""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.workspace_bytes + self.host_bytes

    def claims(self, pool: str) -> dict[str, int]:
        """Bytes per memory pool, for the manager."""
        claims = {pool: self.weights_bytes + self.workspace_bytes}
        if self.host_bytes:
            claims["ram"] = claims.get("ram", 0) + self.host_bytes
        return claims


# --- safetensors --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors header.

    Attributes:
        dtype: the format's own name, e.g. "BF16".
        shape: sizes of its dimensions.
        nbytes: its size in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_safetensors(path: Path) -> dict[str, TensorEntry]:
    """The tensor table of a safetensors file, from its header alone.

    Raises:
        LoadError: the header is damaged, or tensors lie outside the file, overlap or do not fill their place.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(path, "its header does not fit in the file")
            table = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as exc:
        raise _damaged(path, "its header cannot be read") from exc
    if not isinstance(table, dict):
        raise _damaged(path, "its header is not a table")
    table.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    entries = {name: _entry(path, name, row, size - 8 - length, spans) for name, row in table.items()}
    spans.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise _damaged(path, "two tensors overlap")
    return entries


def _entry(path: Path, name: str, row: Any, room: int, spans: list[tuple[int, int]]) -> TensorEntry:
    try:
        dtype, shape, (start, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
        bits = _BITS[dtype]
    except (TypeError, KeyError, ValueError) as exc:
        raise _damaged(path, f"the entry of tensor {name[:80]!r} is not valid") from exc
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise _damaged(path, f"tensor {name[:80]!r} has a size that is not a number")
    count = 1
    for n in shape:
        count *= n
        if count > room * 8:
            raise _damaged(path, f"tensor {name[:80]!r} is larger than the file")
    if not start <= end <= room or (count * bits + 7) // 8 != end - start:
        raise _damaged(path, f"tensor {name[:80]!r} does not fit in the file")
    if end > start:
        spans.append((start, end))
    return TensorEntry(dtype, shape, end - start)


def safetensors_bytes(path: Path, dtype_width: int | None = None, *, on_cuda: bool = False) -> int:
    """Bytes that the tensors of a safetensors file take once loaded; exact.

    Args:
        path: the file.
        dtype_width: bytes per number if the load converts floating tensors (2 for bfloat16); None keeps the file's.
        on_cuda: count what torch reserves for them on a card, see `cuda_reserved_bytes`.

    Raises:
        LoadError: the file is damaged.
    """
    sizes = [
        entry.nbytes
        if dtype_width is None or entry.dtype not in _CONVERTED
        else entry.nbytes * 8 // _BITS[entry.dtype] * dtype_width
        for entry in read_safetensors(path).values()
    ]
    return cuda_reserved_bytes(sizes) if on_cuda else sum(sizes)


def cuda_reserved_bytes(sizes: Iterable[int]) -> int:
    """Bytes that torch's allocator takes from a card for tensors of these sizes, made one after the other.

    It asks the driver for segments (c10/cuda/CUDACachingAllocator.cpp of torch 2): 2 MiB for tensors up to 1 MiB, 20
    MiB for those below 10 MiB, for others the size rounded up to 2 MiB; a block's rest serves later tensors if it is
    large enough. On an H100 this met four models within 1.3 %; the sum of their sizes was up to 12 % below.
    """
    mib = 1 << 20
    total = 0
    small: list[int] = []  # rests of segments, ascending
    large: list[int] = []
    for size in sizes:
        size = -(-max(size, 1) // 512) * 512
        rests, least = (small, 512) if size <= mib else (large, mib + 1)
        found = bisect.bisect_left(rests, size)
        if found < len(rests):
            rest = rests.pop(found) - size
        else:
            segment = 2 * mib if size <= mib else 20 * mib if size < 10 * mib else -(-size // (2 * mib)) * 2 * mib
            total += segment
            rest = segment - size
        if rest >= least:
            bisect.insort(rests, rest)
    return total


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors files that a load of this one component would read: one variant, its shards by index.

    Args:
        folder: a folder as transformers or diffusers save one (no subfolders are looked at).
        variant: "fp16" picks ``*.fp16.safetensors``; "" picks the plain files, else the only variant there is.

    Raises:
        LoadError: there are none, a shard is missing, or the index names files outside the folder.
    """
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    singles = sorted(p for p in folder.glob("*.safetensors") if not _is_shard(p.name))
    for wanted in (variant, "") if variant else ("", *_variants(singles, indexes)):
        whole = [p for p in singles if _variant(p.name) == wanted]
        if whole:
            known = [p for p in whole if p.name.split(".")[0] in ("model", "diffusion_pytorch_model")]
            return known[:1] or whole
        for index in indexes:
            if _variant(index.name.replace(".index", "").removesuffix(".json")) == wanted:
                return _shards(folder, index)
    raise LoadError(
        f"There are no safetensors weights in {folder}.",
        hint="Pickled files (.bin, .pt, .ckpt) are not loaded, because they can run code; convert them first.",
    )


def _is_shard(name: str) -> bool:
    return "-of-" in name


def _variant(name: str) -> str:
    """ "fp16" of "model.fp16.safetensors" and of "model.safetensors.fp16", "" of "model.safetensors"."""
    parts = [part for part in name.split(".")[1:] if part != "safetensors"]
    return parts[-1] if parts else ""


def _variants(singles: list[Path], indexes: list[Path]) -> list[str]:
    """The one variant that a folder has, if it has just one."""
    names = [p.name for p in singles] + [p.name.replace(".index", "").removesuffix(".json") for p in indexes]
    found = {_variant(name) for name in names} - {""}
    return list(found) if len(found) == 1 else []


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _damaged(index, "it is not an index of shards") from exc
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _damaged(index, "it names a file outside its folder")
        if not (folder / name).is_file():
            raise _damaged(folder / name, "it is missing")
    return [folder / name for name in names]


def folder_weights_bytes(
    folder: Path, variant: str = "", dtype_width: int | None = None, *, on_cuda: bool = False
) -> int:
    """Bytes of all weights that loading this folder brings in.

    A folder with ``model_index.json`` is a diffusers pipeline: the components it names are counted, nothing else.

    Args:
        folder: a model's folder.
        variant: see `weight_files`; a component without it counts with its plain files.
        dtype_width, on_cuda: see `safetensors_bytes`.

    Raises:
        LoadError: weights are missing or damaged.
    """
    parts = _components(folder) if (folder / "model_index.json").is_file() else [folder]
    files = [file for part in parts for file in weight_files(part, variant)]
    return sum(safetensors_bytes(file, dtype_width, on_cuda=on_cuda) for file in files)


def _components(folder: Path) -> list[Path]:
    """Subfolders that a pipeline's index names and that hold a model (schedulers and tokenizers hold none)."""
    index = folder / "model_index.json"
    try:
        table = json.loads(index.read_text(encoding="utf-8"))
        names = [n for n, v in table.items() if isinstance(v, list) and len(v) == 2 and all(v)]
    except (OSError, ValueError, AttributeError, RecursionError) as exc:
        raise _damaged(index, "it is not a pipeline's index") from exc
    parts = [folder / name for name in names if Path(name).name == name]
    return [part for part in parts if (part / "config.json").is_file()]


def _damaged(path: Path, why: str) -> LoadError:
    return LoadError(f"The file {path} is damaged: {why}.", hint="Remove the model and download it again.")
