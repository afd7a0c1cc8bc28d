"""Pictures: decode what a caller hands over, encode PNG with metadata."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ..errors import MediaError
from .files import local_path

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageSource", "decode_image", "encode_png", "read_png_metadata"]

ImageSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, "Image.Image"]

#: formats without external programs, external files or scripts behind them
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
#: a 50-megapixel photo passes; below Pillow's own warning (89 MP), so that its global setting never matters
MAX_PIXELS = 64_000_000
_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|BM|RIFF....WEBP", re.DOTALL)
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def decode_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture, fully read, turned upright by its EXIF orientation, in its own mode (RGB, RGBA, L ...).

    Args:
        source: the bytes of a file, base64 text, a data URL, a path, or a PIL image, which is returned as it is.
        max_pixels: a larger picture is refused before its pixels are read.

    Raises:
        MediaError: missing, not a picture, of another format, too large, damaged, or a URL.
    """
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        return source
    data, name = _image_bytes(source)
    if not data:
        raise MediaError(f"{name} is empty.", hint="Give the whole file.")
    if not _MAGIC.match(data):
        raise MediaError(f"{name} is not a picture that can be read.", hint=f"Give {', '.join(FORMATS)}.")
    with _pil_errors(name):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise MediaError(
                f"{name} has {image.width} x {image.height} pixels; the limit is {max_pixels / 1e6:g} million.",
                hint="Make it smaller first.",
            )
        image.load()
        return ImageOps.exif_transpose(image)


def _image_bytes(source: Any) -> tuple[bytes, str]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        # some hosts hand over the base64 text as bytes
        return (data if _MAGIC.match(data) else _from_base64(data) or data), "The picture in memory"
    if isinstance(source, str):
        if source.startswith("data:"):
            return _from_data_url(source), "The picture in the data URL"
        # by content and before any look at the disk: base64 of a JPEG begins with "/9j/", which could be a path
        decoded = _from_base64(source)
        if decoded is not None:
            return decoded, "The picture in base64"
        if len(source) > 4096:
            raise MediaError("The text is neither a picture in base64 nor a path.", hint="Give the whole base64 text.")
    if isinstance(source, (str, os.PathLike)):
        return _read(local_path(source))
    raise MediaError(
        f"A {type(source).__name__} is not a picture that can be read.",
        hint="Give bytes, base64, a path or a PIL image.",
    )


def _from_base64(text: str | bytes) -> bytes | None:
    """Decoded bytes if the text is base64 of a picture, else None. Only the head is decoded to find out."""
    head = text[:64].split() if isinstance(text, bytes) else text[:64].encode("ascii", "replace").split()
    start = b"".join(head)[:16]
    try:
        if len(start) < 16 or not _MAGIC.match(base64.b64decode(start, validate=True)):
            return None
        packed = b"".join((text if isinstance(text, bytes) else text.encode("ascii")).split())
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None


def _from_data_url(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise MediaError("The data URL is not in base64.", hint='It must begin like "data:image/png;base64,".')
    try:
        packed = b"".join(body.encode("ascii").split())
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise MediaError("The data URL is damaged: its text is not base64.", hint="Give the whole text.") from exc


def _read(path: Path) -> tuple[bytes, str]:
    try:
        return path.read_bytes(), repr(path.name)
    except FileNotFoundError as exc:
        raise MediaError(f"There is no file {str(path)[:200]!r}.", hint="Check the path.") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise MediaError(
            f"{str(path)[:200]!r} cannot be opened: {reason}.", hint="Check the path and its permissions."
        ) from exc


@contextlib.contextmanager
def _pil_errors(name: str) -> Iterator[None]:
    """The one place where Pillow's errors become ours; a bad file can raise any of these four."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except MediaError:
        raise
    except Image.DecompressionBombError as exc:
        raise MediaError(f"{name} has far too many pixels.", hint="Make it smaller first.") from exc
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as exc:
        raise MediaError(f"{name} is damaged and cannot be decoded.", hint="Save or download it again.") from exc


def encode_png(image: Any, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file.

    Args:
        image: a PIL image, or uint8 [height, width], [height, width, 3] or [height, width, 4].
        metadata: text entries; Latin-1 text goes into tEXt, the rest into iTXt. Values that are not text become text.

    Raises:
        MediaError: the array has another type or shape, or a key is not 1 to 79 Latin-1 characters.
    """
    from PIL import Image, PngImagePlugin

    if not isinstance(image, Image.Image):
        image = _from_array(image)
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        if not 1 <= len(key) <= 79 or not key.isprintable() or any(ord(c) > 255 for c in key):
            raise MediaError(f"{key[:80]!r} cannot be a PNG text key.", hint="Use 1 to 79 Latin-1 characters.")
        info.add_text(key, str(value))  # Pillow itself switches to iTXt where Latin-1 does not do
    buffer = io.BytesIO()
    with _pil_errors("The picture to be written"):
        image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _from_array(array: Any) -> Image.Image:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(array)
    shape_fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shape_fits or not pixels.size:
        raise MediaError(
            f"A picture needs uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}.",
            hint="lollms_local.media.to_uint8 turns 0..1 floats into bytes.",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def read_png_metadata(data: bytes) -> dict[str, str]:
    """The text entries of a PNG.

    Raises:
        MediaError: it is not a PNG, or damaged.
    """
    from PIL import Image

    if not bytes(data[:8]) == _PNG_MAGIC:
        raise MediaError("The data is not a PNG file.")
    with _pil_errors("The PNG"):
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()  # text may come after the pixels
        return {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
