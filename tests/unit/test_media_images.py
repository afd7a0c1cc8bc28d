"""Pictures: recognised by content, capped, upright; PNG metadata survives."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lollms_local.errors import MediaError
from lollms_local.media import decode_image, encode_png, read_png_metadata, to_uint8

PIXELS = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_way_to_hand_over_a_picture_gives_the_same_pixels(form: str, tmp_path: Path) -> None:
    data = encoded(form)
    text = base64.b64encode(data).decode()
    path = tmp_path / "picture.dat"
    path.write_bytes(data)
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    wanted = np.asarray(Image.open(io.BytesIO(data)))
    for source in (data, bytearray(data), text, wrapped, text.rstrip("="), text.encode(), path, str(path),
                   "data:image/jpeg;base64," + text, Image.open(io.BytesIO(data))):  # fmt: skip
        assert np.array_equal(np.asarray(decode_image(source)), wanted)


def test_base64_of_a_jpeg_is_not_taken_for_a_path() -> None:
    text = base64.b64encode(encoded("JPEG")).decode()
    assert text.startswith("/9j/")
    assert decode_image(text).size == (30, 20)


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded("JPEG", exif=exif)).size == (20, 30)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(MediaError, match="limit is 64 million"):
        decode_image(bomb)
    larger = bomb.replace(head, chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)))
    with pytest.raises(MediaError, match="pixels"):
        decode_image(larger)


BAD: dict[str, object] = {
    "empty": b"",
    "text": b"no picture at all",
    "cut PNG": encoded("PNG")[:60],
    "cut JPEG": encoded("JPEG")[:200],
    "a PNG's head and noise": b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "address": "https://127.0.0.1:9/a.png",
    "missing": "no such file.png",
    "missing, like base64": "/9j/none.png",
    "long text": "word " * 2000,
    "broken data URL": "data:image/png;base64,!!!",
    "data URL without base64": "data:image/png,abc",
    "number": 7,
    "nul in path": "a\0b.png",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_with_a_hint(name: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_image(BAD[name])  # type: ignore[arg-type]
    assert caught.value.message.endswith(".") and caught.value.hint and len(str(caught.value)) < 400


def test_png_metadata_survives_in_any_script() -> None:
    wanted = {"parameters": "a heron\nSteps: 4", "seed": "7", "titre": "héron à l'aube", "nom": "鷺 🐦"}
    data = encode_png(PIXELS, wanted)
    assert read_png_metadata(data) == wanted
    assert np.array_equal(np.asarray(decode_image(data)), PIXELS)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 4)])
def test_arrays_of_grey_colour_and_alpha_become_png(shape: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).astype(np.uint8)
    assert np.array_equal(np.asarray(decode_image(encode_png(pixels))), pixels)


def test_what_is_no_picture_is_not_encoded() -> None:
    for array in (PIXELS / 255.0, PIXELS[..., :2], PIXELS[None], PIXELS[:0]):
        with pytest.raises(MediaError):
            encode_png(array)
    with pytest.raises(MediaError, match="text key"):
        encode_png(PIXELS, {"": "x"})
    with pytest.raises(MediaError, match="not a PNG"):
        read_png_metadata(encoded("JPEG"))


def test_floats_become_bytes_rounded_and_clipped() -> None:
    assert to_uint8(np.array([-1.0, 0.0, 0.5, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(MediaError, match="not finite"):
        to_uint8(np.array([np.nan]))
