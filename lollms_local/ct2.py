"""CTranslate2 model files (model.bin), read with strict bounds before the library's own parser sees them.

The file is a table of variables, each with its bytes behind its name, so walking it means one short read and one seek
per variable: a gigabyte takes milliseconds. A file that ends early, has bytes left over, or is something else
(a PyTorch pickle is also called .bin) is refused with the reason. Layout: ctranslate2's specs/model_spec.py, version 6.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import LoadError

__all__ = ["Ct2Header", "Ct2Variable", "read_ct2"]

#: oldest and newest layout that carries what we read here; ctranslate2 4.x writes 6
MIN_VERSION, MAX_VERSION = 4, 6
MAX_VARIABLES = 100_000
MAX_NAME_BYTES = 1_000
MAX_RANK = 6

#: DataType of ctranslate2 -> bytes of one number: float32, int8, int16, int32, float16, bfloat16
_ITEM_BYTES = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}
_FLOATS = (0, 4, 5)


@dataclass(frozen=True)
class Ct2Variable:
    """One row of the table.

    Attributes:
        name: e.g. "encoder/conv1/weight".
        shape: as stored.
        is_float: False for integers: quantised weights, sizes and flags.
        file_bytes: as stored.
    """

    name: str
    shape: tuple[int, ...]
    is_float: bool
    file_bytes: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Ct2Header:
    """What a model.bin holds.

    Attributes:
        spec: the kind of model, e.g. "WhisperSpec".
        variables: all of them.
    """

    spec: str
    variables: tuple[Ct2Variable, ...]

    def weights_bytes(self, float_bytes: int, *, quantised: bool) -> int:
        """Bytes in memory.

        Args:
            float_bytes: of one number that stays a float (4, or 2 on a GPU).
            quantised: matrices become one byte per number plus a float32 scale per row, as the library does it; the
                convolutions of Whisper's encoder and the position tables stay floats.
        """
        return sum(_loaded_bytes(v, float_bytes, quantised) for v in self.variables)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a variable, () if there is none of that name."""
        return next((v.shape for v in self.variables if v.name == name), ())


def _loaded_bytes(variable: Ct2Variable, float_bytes: int, quantised: bool) -> int:
    is_matrix = len(variable.shape) == 2 and variable.name.endswith("weight")
    if is_matrix and (quantised or not variable.is_float):
        return variable.count + 4 * variable.shape[0] if quantised else variable.count * float_bytes
    return variable.count * float_bytes if variable.is_float else variable.file_bytes


def read_ct2(path: Path) -> Ct2Header:
    """Read the table of a model.bin; weights are skipped, not read.

    Raises:
        LoadError: it is missing, damaged, cut short or not a CTranslate2 model; says which.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path).header()
    except OSError as exc:
        raise LoadError(f"{path} cannot be read: {exc.strerror or exc}.", hint="Download the model again.") from exc


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.size = os.fstat(file.fileno()).st_size

    def header(self) -> Ct2Header:
        head = self.file.read(4)
        self.file.seek(0)
        if head[:2] == b"PK" or head[:1] == b"\x80":
            raise LoadError(
                f"{self.path} is a PyTorch pickle, which can run code, and not a CTranslate2 model.",
                hint="Choose a repository converted for faster-whisper.",
            )
        version = self._number("I")
        if not MIN_VERSION <= version <= MAX_VERSION:
            raise self._damaged(f"it does not begin like a CTranslate2 model of version {MIN_VERSION} to {MAX_VERSION}")
        spec = self._name()
        self._number("I")  # revision of the spec
        count = self._number("I")
        if not 0 < count <= MAX_VARIABLES:
            raise self._damaged(f"it claims {count} variables")
        variables = tuple(self._variable() for _ in range(count))
        for _ in range(min(self._number("I"), MAX_VARIABLES)):  # aliases: two names each
            self._name(), self._name()
        if self.file.tell() != self.size:
            raise self._damaged(f"{self.size - self.file.tell()} bytes are left over at its end")
        return Ct2Header(spec, variables)

    def _variable(self) -> Ct2Variable:
        name = self._name()
        rank = self._number("B")
        if rank > MAX_RANK:
            raise self._damaged(f"the variable {name} has {rank} dimensions")
        shape = tuple(self._number("I") for _ in range(rank))
        kind = self._number("B")
        size = self._number("I")
        # the size is a 32-bit number: of a larger variable only the remainder is stored
        expected = math.prod(shape) * _ITEM_BYTES.get(kind, 0)
        if kind not in _ITEM_BYTES or expected & 0xFFFFFFFF != size:
            raise self._damaged(f"the variable {name} does not have the size that its shape says")
        if self.file.tell() + expected > self.size:
            raise self._damaged("it is cut short")
        self.file.seek(expected, os.SEEK_CUR)
        return Ct2Variable(name, shape, kind in _FLOATS, expected)

    def _name(self) -> str:
        length = self._number("H")
        data = self._take(length) if 0 < length <= MAX_NAME_BYTES else b""
        text = data[:-1].decode("ascii", "replace")
        if not data or data[-1] != 0 or not text.isprintable() or "\ufffd" in text:
            raise self._damaged("a name in it is not readable")
        return text

    def _number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0])

    def _take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise self._damaged("it is cut short")
        return data

    def _damaged(self, why: str) -> LoadError:
        return LoadError(f"{self.path} is damaged: {why}.", hint="Remove the model and download it again.")
