"""Which shared libraries a Linux library asks for: the NEEDED entries of an ELF file's dynamic section.

Format: System V ABI, chapters 4 (ELF header) and 5 (program header, dynamic section). The file is somebody else's, so
every offset and count is held against the file's size and small limits before it is used.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["needed_libraries"]

MAX_SEGMENTS = 128
MAX_DYNAMIC_BYTES = 1 << 20
MAX_NAMES_BYTES = 64 << 20
MAX_NAME_BYTES = 4096
PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ = 0, 1, 5, 10


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    file_bytes: int


def needed_libraries(path: Path) -> list[str] | None:
    """The names that a library asks the loader for, in its order; None if it is no ELF file or a damaged one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _needed(file, size)
        except (_Damaged, struct.error):
            return None


class _Damaged(Exception):
    """An offset or a count that the file cannot have."""


def _needed(file: BinaryIO, size: int) -> list[str]:
    order, wide = _kind(_read(file, size, 0, 16))
    segments = _segments(file, size, order, wide)
    dynamic = next((s for s in segments if s.kind == PT_DYNAMIC), None)
    if dynamic is None:
        return []  # linked with nothing
    if dynamic.file_bytes > MAX_DYNAMIC_BYTES:
        raise _Damaged
    entry = struct.Struct(order + ("qQ" if wide else "iI"))
    raw = _read(file, size, dynamic.offset, dynamic.file_bytes)
    offsets: list[int] = []
    found: dict[int, int] = {}
    for tag, value in entry.iter_unpack(raw[: len(raw) // entry.size * entry.size]):
        if tag == DT_NULL:
            break
        if tag == DT_NEEDED:
            offsets.append(value)
        else:
            found.setdefault(tag, value)
    if not offsets:
        return []
    if DT_STRTAB not in found or not 0 < found.get(DT_STRSZ, 0) <= MAX_NAMES_BYTES:
        raise _Damaged
    start, length = _in_file(segments, found[DT_STRTAB]), found[DT_STRSZ]
    return [_name(file, size, start, length, offset) for offset in offsets]


def _kind(head: bytes) -> tuple[str, bool]:
    """Byte order for `struct`, and whether it is a 64-bit file."""
    if head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise _Damaged
    return ("<" if head[5] == 1 else ">"), head[4] == 2


def _segments(file: BinaryIO, size: int, order: str, wide: bool) -> list[_Segment]:
    header = _read(file, size, 16, 48 if wide else 36)
    # type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize, shnum, shstrndx
    fields = struct.unpack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), header)
    table, entry_bytes, count = fields[4], fields[8], fields[9]
    row = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    if count > MAX_SEGMENTS or entry_bytes < row.size:
        raise _Damaged
    made = []
    for number in range(count):
        values = row.unpack(_read(file, size, table + number * entry_bytes, row.size))
        kind = values[0]
        offset, address, length = (values[2], values[3], values[5]) if wide else (values[1], values[2], values[4])
        made.append(_Segment(kind, offset, address, length))
    return made


def _in_file(segments: list[_Segment], address: int) -> int:
    """Where in the file the byte is that is loaded at an address."""
    for segment in segments:
        if segment.kind == PT_LOAD and 0 <= address - segment.address < segment.file_bytes:
            return segment.offset + address - segment.address
    raise _Damaged


def _name(file: BinaryIO, size: int, start: int, length: int, offset: int) -> str:
    if offset >= length:
        raise _Damaged
    text = _read(file, size, start + offset, min(length - offset, MAX_NAME_BYTES, max(0, size - start - offset)))
    end = text.find(b"\0")
    if end < 0:
        raise _Damaged
    return text[:end].decode("utf-8", "replace")


def _read(file: BinaryIO, size: int, offset: int, length: int) -> bytes:
    if offset < 0 or length < 0 or offset + length > size:
        raise _Damaged
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise _Damaged
    return data
