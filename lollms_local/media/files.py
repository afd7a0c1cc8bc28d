"""Recognising a file by its first bytes, opening it, and writing one so that no reader ever sees half of it."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import MediaError

__all__ = ["HEAD_BYTES", "looks_like_text", "open_source", "sniff_container", "write_file"]

#: enough of a file to recognise it
HEAD_BYTES = 64

_AUDIO_FORMATS = "WAV, FLAC, MP3, Ogg/Opus, M4A/MP4, AAC, AIFF or Matroska/WebM"

#: first bytes -> name of the one demuxer that may read the file
_MAGIC = ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1aE\xdf\xa3", "matroska"))
_RIFF = {b"WAVE": "wav"}
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def sniff_container(head: bytes) -> str | None:
    """The demuxer for a sound or film file that begins with `head`, or None.

    Playlists, session descriptions and other formats that point at further files are deliberately not in the table.
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    return _sniff_mpeg_audio(head)


def _sniff_mpeg_audio(head: bytes) -> str | None:
    """MP3 and raw AAC start with eleven or twelve set bits; ID3 tags come before MP3 frames."""
    if head.startswith(b"ID3"):
        return "mp3"
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    layer, version = head[1] >> 1 & 3, head[1] >> 3 & 3
    if layer == 0:
        return "aac" if head[1] & 0xF6 == 0xF0 else None
    usable = version != 1 and head[2] >> 4 != 15 and head[2] >> 2 & 3 != 3
    return "mp3" if usable else None


def looks_like_text(head: bytes) -> bool:
    """True if the bytes are readable characters."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as exc:
        if exc.start < len(head) - 3:
            return False
        text = head[: exc.start].decode("utf-8")
    return bool(text) and all(c.isprintable() or c in "\r\n\t\ufeff" for c in text)


@contextlib.contextmanager
def open_source(source: Any) -> Iterator[tuple[IO[bytes], str, str]]:
    """Open a path, bytes or a seekable binary file; yield it with its demuxer and a name for messages.

    A file object is read from its beginning, put back to where it was, and left open.

    Raises:
        MediaError: it is missing, empty, not readable, a URL, or of no format in the table.
    """
    stream: IO[bytes]
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            stream, name = io.BytesIO(source), "The sound in memory"
        elif isinstance(source, (str, os.PathLike)):
            path = local_path(source)
            stream, name = stack.enter_context(_open_path(path)), repr(path.name)
        elif hasattr(source, "read") and hasattr(source, "seek"):
            stream, name = source, repr(getattr(source, "name", "The file object"))
        else:
            raise MediaError(
                f"A {type(source).__name__} is not a sound that can be read.",
                hint="Give a path, the bytes of a file, an open binary file or a lollms_local.media.Audio.",
            )
        start = stream.tell()
        stream.seek(0)
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        try:
            yield stream, _container_of(head, name), name
        finally:
            if stream is source:
                stream.seek(start)


def local_path(source: str | os.PathLike[str]) -> Path:
    """A path of this machine.

    Raises:
        MediaError: it is a URL: nothing here uses the network.
    """
    text = os.fspath(source)
    scheme, separator, _ = str(text).partition("://")
    if separator and scheme.replace("+", "").isalnum():
        raise MediaError(
            f"{str(text)[:80]!r} is an address, and nothing is fetched from the network.", hint="Save the file first."
        )
    return Path(text)


def _open_path(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as exc:
        raise MediaError(f"There is no file {str(path)!r}.", hint="Check the path.") from exc
    except IsADirectoryError as exc:
        raise MediaError(f"{str(path)!r} is a folder, not a file.", hint="Give the path of one file.") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise MediaError(
            f"{str(path)[:200]!r} cannot be opened: {reason}.", hint="Check the path and its permissions."
        ) from exc


def _container_of(head: bytes, name: str) -> str:
    if not head:
        raise MediaError(f"{name} is empty.", hint="Record or download it again.")
    container = sniff_container(head)
    if container is not None:
        return container
    kind = "holds text, not sound" if looks_like_text(head) else "is not in a sound or film format that we read"
    raise MediaError(f"{name} {kind}.", hint=f"Give {_AUDIO_FORMATS}.")


def write_file(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file whole or not at all: under a temporary name first, then renamed over the old one.

    Returns:
        The path. Missing folders are made.

    Raises:
        MediaError: it cannot be written (no permission, disk full); what was there before is unchanged.
    """
    target = Path(path)
    part = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:12]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(data)
        os.replace(part, target)
    except OSError as exc:
        with contextlib.suppress(OSError):  # the first error is the one to report
            part.unlink(missing_ok=True)
        raise MediaError(
            f"{str(target)!r} cannot be written: {exc.strerror or exc}.",
            hint="Check the folder's permissions and free space.",
        ) from exc
    return target
