"""One file over plain HTTP, by the hub client's own session, into a part that outlives this process.

The client's function for this (`http_get`) keeps whole pieces of 10 MB only, so that on a slow line that breaks now and
then nothing is ever gained, and it tries again by itself, so that nobody can say how long a server may be silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

__all__ = ["SlowTransfer", "transfer"]

#: a transfer that brings less than this in `SLOW_WINDOWS` times the longest silence is given up: another may be quicker
SLOW_BYTES = 60_000
SLOW_WINDOWS = 6
#: the caller is told at least this often
REPORT_BYTES, REPORT_S = 1 << 18, 0.2


class SlowTransfer(Exception):
    """So little comes that it is no better than nothing."""


def transfer(
    url: str,
    part: Path,
    *,
    headers: Mapping[str, str],
    total_bytes: int,
    stall_s: float,
    on_bytes: Callable[[int], None],
) -> None:
    """Bring what `part` lacks of a file.

    Args:
        total_bytes: size of the file; 0 = unknown.
        stall_s: longest silence of the server, in seconds.
        on_bytes: told how many bytes of the file are in `part`; what it raises ends the transfer.

    Raises:
        EOFError: fewer or more bytes came than the file has.
        SlowTransfer: they trickle.
        OSError: of the disk.
        Exception: the hub client's and its HTTP library's errors; `hub_source` knows them.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined,unused-ignore]
        get_session,
        hf_raise_for_status,
    )

    if total_bytes and part.is_file() and part.stat().st_size > total_bytes:
        part.unlink()
    with part.open("ab") as out:
        start = out.tell()
        if total_bytes and start == total_bytes:
            return
        wanted = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        with get_session().stream("GET", url, headers=wanted, timeout=stall_s, follow_redirects=True) as response:
            if start and response.status_code == 416:  # a part of another file
                out.truncate(0)
                raise EOFError(url)
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # the server sends the whole file anew
                out.truncate(0)
                start = 0
            _copy(response.iter_bytes(), out, start, total_bytes, stall_s * SLOW_WINDOWS, on_bytes)


def _copy(
    pieces: Iterator[bytes],
    out: BinaryIO,
    have: int,
    total_bytes: int,
    window_s: float,
    on_bytes: Callable[[int], None],
) -> None:
    told, told_s = have, time.monotonic()
    marked, marked_s = have, told_s
    for piece in pieces:
        out.write(piece)
        have += len(piece)
        now = time.monotonic()
        if total_bytes and have > total_bytes:
            out.truncate(0)
            raise EOFError("more came than the file has")
        if have - told >= REPORT_BYTES or now - told_s >= REPORT_S:
            told, told_s = have, now
            on_bytes(have)
        if have - marked >= SLOW_BYTES:
            marked, marked_s = have, now
        elif now - marked_s > window_s:
            raise SlowTransfer
    if total_bytes and have != total_bytes:
        raise EOFError("fewer bytes came than the file has")
