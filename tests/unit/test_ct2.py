"""CTranslate2 headers: what the file holds, and a refusal for everything that is not whole."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lollms_local.ct2 import read_ct2
from lollms_local.errors import LoadError


def model(extra: bytes = b"", version: int = 6, count: int = 2) -> bytes:
    """A file of two variables: int8 [4, 3] and float32 [2]."""

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    head = struct.pack("<I", version) + name("WhisperSpec") + struct.pack("<II", 3, count)
    first = name("decoder/layer_0/weight") + struct.pack("<BIIBI", 2, 4, 3, 1, 12) + bytes(12)
    second = name("decoder/layer_0/bias") + struct.pack("<BIBI", 1, 2, 0, 8) + np.ones(2, "<f4").tobytes()
    return head + first + second + struct.pack("<I", 1) + name("a") + name("b") + extra


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    return path


def test_the_table_says_names_shapes_and_bytes(tmp_path: Path) -> None:
    header = read_ct2(written(tmp_path, model()))
    assert header.spec == "WhisperSpec"
    assert [(v.name, v.shape, v.is_float, v.file_bytes) for v in header.variables] == [
        ("decoder/layer_0/weight", (4, 3), False, 12),
        ("decoder/layer_0/bias", (2,), True, 8),
    ]
    assert header.shape("decoder/layer_0/bias") == (2,) and header.shape("nothing") == ()


def test_bytes_in_memory_follow_the_arithmetic(tmp_path: Path) -> None:
    header = read_ct2(written(tmp_path, model()))
    assert header.weights_bytes(4, quantised=True) == 12 + 4 * 4 + 8
    assert header.weights_bytes(4, quantised=False) == 12 * 4 + 8
    assert header.weights_bytes(2, quantised=False) == 12 * 2 + 4


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = model()
    for length in range(len(whole)):
        with pytest.raises(LoadError):
            read_ct2(written(tmp_path, whole[:length]))


def test_every_flipped_byte_of_the_table_is_read_or_refused_but_never_believed_blindly(tmp_path: Path) -> None:
    whole = model()
    for position in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(whole)
            data[position] ^= flip
            try:
                header = read_ct2(written(tmp_path, bytes(data)))
            except LoadError as exc:
                assert exc.hint
            else:
                assert sum(v.file_bytes for v in header.variables) == 20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        os.urandom(4096),
        model(extra=b"x"),
        model(version=1),
        model(version=7),
        model(count=0xFFFFFFFF),
        model(count=0),
    ],
)
def test_what_is_no_model_is_refused_with_a_hint(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as caught:
        read_ct2(written(tmp_path, data))
    assert "damaged" in caught.value.message and "download it again" in caught.value.hint


def test_a_pickle_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "hacked"),)

    for data in (pickle.dumps(Evil()), b"PK\x03\x04" + bytes(100)):
        with pytest.raises(LoadError, match="PyTorch pickle"):
            read_ct2(written(tmp_path, data))
    assert not (tmp_path / "hacked").exists()


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        read_ct2(tmp_path / "model.bin")
