"""GGUF headers, read with strict bounds before llama.cpp's own parser sees the file.

A header says all that a plan needs: the architecture's sizes, the tokenizer's, every tensor's type and place. It is
read in milliseconds, weights are not touched, and nothing that the file claims is believed without a bound: a count or
a length that the file cannot hold is a `LoadError`. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .errors import LoadError
from .gguf_checks import STRING, TOKENS, ArrayInfo, check_model, check_tokens, check_vocabulary, damaged

__all__ = ["ArrayInfo", "GgufHeader", "GgufTensor", "read_gguf", "read_gguf_model", "split_files"]

MAGIC = b"GGUF"
#: a header larger than this is not a model's: the largest vocabularies (a million merges) take about 30 MB
MAX_HEADER_BYTES = 256 << 20
MAX_ENTRIES = 65_536  # keys of metadata; real files have under a hundred
MAX_TENSORS = 1_000_000
MAX_ARRAY = 16_000_000
MAX_DIMENSIONS = 4
#: arrays of numbers up to this length are kept (one number per layer); longer ones are only counted
KEEP_ARRAY = 4096

#: scalar metadata types -> struct code
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ARRAY = 9
_WIDTH = {kind: struct.calcsize("<" + code) for kind, code in _SCALARS.items()}

#: ggml type number -> (name, numbers per block, bytes per block); from ggml_type_size() and ggml_blck_size()
GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table.

    Attributes:
        shape: sizes as ggml counts them, the contiguous dimension first.
        type_name: e.g. "Q4_K".
        offset: from the start of the tensor data, in bytes.
        nbytes: size in the file, and in memory.
    """

    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What one GGUF file says about itself.

    Attributes:
        path: the file.
        version: 2 or 3.
        metadata: scalars, strings, short arrays of numbers (tuples), `ArrayInfo` for all other arrays.
        tensors: the tensor table by name.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor] = field(repr=False)

    @property
    def architecture(self) -> str:
        """E.g. "llama"; "" if the file does not say."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors of this file."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def vocabulary_size(self) -> int:
        """Tokens of the tokenizer; 0 if the file has none."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return tokens.count if isinstance(tokens, ArrayInfo) else 0

    def of_arch(self, key: str, default: Any = None) -> Any:
        """A value of this architecture's own section: `of_arch("block_count")` reads "llama.block_count"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_gguf(path: Path) -> GgufHeader:
    """Read and check one file's header.

    Raises:
        LoadError: it is not a GGUF file, or what it claims does not fit in it; says what and where.
    """
    try:
        facts = path.stat()
        return _read(path, facts.st_size, facts.st_mtime_ns)
    except OSError as exc:
        raise LoadError(
            f"The file {path} cannot be read: {exc.strerror or exc}.", hint="Check that it exists."
        ) from exc


@functools.lru_cache(maxsize=16)
def _read(path: Path, size: int, mtime_ns: int) -> GgufHeader:
    """Read once as long as the file stays as it is: plans are made often, and large vocabularies take 0.1 s."""
    with path.open("rb") as file:
        return _Reader(path, file, size).header()


def read_gguf_model(path: Path) -> tuple[GgufHeader, int]:
    """The first file's header and the bytes of all tensors, shards of a split model included.

    Raises:
        LoadError: a file is damaged, a shard is missing, or the first file holds no language model.
    """
    files = split_files(path)
    headers = [read_gguf(file) for file in files]
    first = headers[0]
    declared = first.metadata.get("split.count", 1)
    if declared not in (0, len(files)):
        raise damaged(first.path, f"it says it is one of {declared} parts and {len(files)} are here")
    check_model(first.path, first.architecture, first.metadata)
    return first, sum(h.weights_bytes for h in headers)


_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)


def split_files(path: Path) -> list[Path]:
    """All files of a model: "x-00001-of-00003.gguf" and its fellows, or the one file.

    Raises:
        LoadError: a shard is missing.
    """
    match = _SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= 1000:
        raise LoadError(f"The name {path.name} says that there are {count} parts.", hint="Use the names as published.")
    files = [path.with_name(f"{match['stem']}-{n:05d}-of-{match['count']}.gguf") for n in range(1, count + 1)]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise LoadError(
            f"The model {path.name} is split in {count} files and these are missing: {', '.join(missing[:3])}.",
            hint="Download the model again.",
        )
    return files


class _Reader:
    """A cursor over a header of which nothing is known to be true."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.buffer = bytearray()
        self.at = 0

    def need(self, nbytes: int) -> int:
        """Make the next `nbytes` readable; returns their start in the buffer and moves past them."""
        start, end = self.at, self.at + nbytes
        if end > self.size:
            raise damaged(self.path, f"its header wants {nbytes} bytes at {start} and the file has {self.size}")
        if end > MAX_HEADER_BYTES:
            raise damaged(self.path, "its header is larger than any model's")
        while len(self.buffer) < end:
            more = self.file.read(max(1 << 20, end - len(self.buffer)))
            if not more:
                raise damaged(self.path, "it ends within its header")
            self.buffer += more
        self.at = end
        return start

    def number(self, code: str) -> Any:
        start = self.need(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.buffer, start)[0]

    def text(self) -> str:
        length = self.number("Q")
        start = self.need(length)
        return self.buffer[start : start + length].decode("utf-8", errors="replace")

    def header(self) -> GgufHeader:
        if self.size < 24 or bytes(self.buffer[self.need(4) :][:4]) != MAGIC:
            raise LoadError(f"The file {self.path} is not a GGUF file.", hint="Use a model in the GGUF format.")
        version = self.number("I")
        if version not in (2, 3):
            raise LoadError(
                f"The file {self.path} is GGUF version {version}; versions 2 and 3 can be read.",
                hint="Versions above a million mean a big-endian file. Convert it again with a current llama.cpp.",
            )
        tensor_count, entry_count = self.number("Q"), self.number("Q")
        if tensor_count > min(MAX_TENSORS, self.size // 24) or entry_count > min(MAX_ENTRIES, self.size // 13):
            raise damaged(self.path, f"it claims {tensor_count} tensors and {entry_count} entries")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self.text()
            if key in metadata:
                raise damaged(self.path, f"the key {key[:60]!r} comes twice")
            start = self.at
            metadata[key] = self.value(self.number("I"), keep=not key.startswith("tokenizer."))
            if key == TOKENS:
                check_tokens(self.path, metadata[key], self.buffer, start + 16)
        check_vocabulary(self.path, metadata)
        rows = [self.tensor() for _ in range(tensor_count)]
        return GgufHeader(self.path, version, metadata, self.placed(rows, metadata))

    def value(self, kind: int, *, keep: bool = True) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(keep)
        raise damaged(self.path, f"its metadata has a value of the unknown type {kind}")

    def array(self, keep: bool) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if count > MAX_ARRAY:
            raise damaged(self.path, f"its metadata has a list of {count} values")
        if kind in _SCALARS:
            start = self.need(count * _WIDTH[kind])
            if keep and count <= KEEP_ARRAY:
                return struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.buffer, start)
        elif kind == STRING:
            self.skip_texts(count)
        else:
            raise damaged(self.path, f"its metadata has a list of the unknown type {kind}")
        return ArrayInfo(kind, count)

    def skip_texts(self, count: int) -> None:
        """Pass over strings without making any: a vocabulary has up to a million."""
        length_at, buffer, at = struct.Struct("<Q").unpack_from, self.buffer, self.at
        for _ in range(count):
            end = at + 8
            if end > len(buffer):
                self.at = at
                self.need(8)
            end += length_at(buffer, at)[0]
            if end > len(buffer):
                self.at = at
                self.need(end - at)
            at = end
        self.at = at

    def tensor(self) -> tuple[str, GgufTensor]:
        name, n_dims = self.text(), self.number("I")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise damaged(self.path, f"tensor {name[:60]!r} has {n_dims} dimensions")
        shape = tuple(self.number("Q") for _ in range(n_dims))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in GGML_TYPES:
            raise LoadError(
                f"Tensor {name[:60]!r} of {self.path} has the number format {kind}, which is not known here.",
                hint="Download another quantisation, or a newer release of this package.",
            )
        type_name, block, block_bytes = GGML_TYPES[kind]
        count = 1
        for n in shape:
            count *= n
            if count > self.size * 64 or n == 0:  # the densest format has 7 numbers per byte
                raise damaged(self.path, f"tensor {name[:60]!r} is larger than the file, or empty")
        if shape[0] % block:
            raise damaged(self.path, f"tensor {name[:60]!r} does not divide into blocks of {type_name}")
        return name, GgufTensor(shape, type_name, offset, count // block * block_bytes)

    def placed(self, rows: list[tuple[str, GgufTensor]], metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
        """The tensor table, once every tensor lies in the file, aligned, and in a place of its own."""
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise damaged(self.path, f"its alignment is {alignment!r}")
        room = self.size - -(-self.at // alignment) * alignment
        tensors = dict(rows)
        if len(tensors) != len(rows):
            raise damaged(self.path, "two tensors have the same name")
        spans = []
        for name, tensor in rows:
            if tensor.offset % alignment or tensor.offset + tensor.nbytes > room:
                raise damaged(self.path, f"tensor {name[:60]!r} lies outside the file: it was cut, or is not complete")
            spans.append((tensor.offset, tensor.offset + tensor.nbytes))
        spans.sort()
        if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
            raise damaged(self.path, "two tensors overlap")
        return tensors
