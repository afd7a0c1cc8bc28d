"""The bytes told before a load are the bytes held after it, and no damaged header passes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lollms_local.errors import LoadError
from lollms_local.footprint import (
    cuda_reserved_bytes,
    folder_weights_bytes,
    read_safetensors,
    safetensors_bytes,
    weight_files,
)


def write(path: Path, tensors: dict[str, Any], data: bytes) -> Path:
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_bytes_equal_the_storages_that_a_load_creates(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.bfloat16),
        "ids": torch.zeros(4, dtype=torch.int64),
        "scalar": torch.zeros(()),
        "empty": torch.zeros(0, 3),
    }
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = load_file(file)
    assert safetensors_bytes(file) == sum(t.nbytes for t in loaded.values())
    halves = sum(t.to(torch.bfloat16).nbytes if t.is_floating_point() else t.nbytes for t in loaded.values())
    assert safetensors_bytes(file, 2) == halves


MIB = 1 << 20


@pytest.mark.parametrize(
    ("sizes", "reserved_mib"),
    [
        ([], 0),
        ([1] * 4096, 2),  # 512 bytes each
        ([1] * 4097, 4),
        ([MIB, MIB], 2),
        ([MIB + 1], 20),
        ([8 * MIB, 8 * MIB], 20),
        ([8 * MIB, 8 * MIB, 8 * MIB], 40),
        ([8 * MIB, 8 * MIB, 8 * MIB, 3 * MIB], 40),  # the rest of the first segment is used
        ([10 * MIB], 10),
        ([11 * MIB], 12),
    ],
)
def test_on_a_card_torch_takes_whole_segments(sizes: list[int], reserved_mib: int) -> None:
    assert cuda_reserved_bytes(sizes) == reserved_mib * MIB


def test_a_file_counts_more_on_a_card(tmp_path: Path) -> None:
    size = 8 * MIB
    file = write(tmp_path / "model.safetensors", {"a": tensor("F16", [size // 2], 0, size)}, bytes(size))
    assert (safetensors_bytes(file), safetensors_bytes(file, 2, on_cuda=True)) == (size, 20 * MIB)
    assert folder_weights_bytes(tmp_path, dtype_width=4, on_cuda=True) == 16 * MIB


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 200_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
    ],
)
def test_a_header_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(LoadError, match="damaged"):
        read_safetensors(file)


@pytest.mark.parametrize(
    "table",
    [
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)},  # overlap
        {"a": tensor("F32", [5], 0, 20)},  # past the end
        {"a": tensor("F32", [2], 8, 0)},  # backwards
        {"a": tensor("F32", [3], 0, 8)},  # shape and bytes differ
        {"a": tensor("F32", [-2], 0, 8)},
        {"a": tensor("F99", [2], 0, 8)},
        {"a": tensor("F32", [1 << 62, 1 << 62], 0, 8)},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_tensors_outside_the_file_are_refused(tmp_path: Path, table: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="damaged"):
        read_safetensors(write(tmp_path / "x.safetensors", table, bytes(16)))


def small(folder: Path, name: str, numbers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / name, {"a": tensor("F32", [numbers], 0, 4 * numbers)}, bytes(4 * numbers))


def test_one_variant_is_counted_not_both(tmp_path: Path) -> None:
    small(tmp_path, "model.safetensors", 100)
    small(tmp_path, "model.fp16.safetensors", 50)
    assert folder_weights_bytes(tmp_path) == 400
    assert folder_weights_bytes(tmp_path, "fp16") == 200
    assert folder_weights_bytes(tmp_path, "bf16") == 400  # a component without the variant loads its plain file


def test_the_only_variant_is_taken_where_there_is_no_plain_file(tmp_path: Path) -> None:
    small(tmp_path, "diffusion_pytorch_model.fp16.safetensors", 50)
    assert folder_weights_bytes(tmp_path) == 200


def test_shards_are_taken_from_the_index(tmp_path: Path) -> None:
    small(tmp_path, "model-00001-of-00002.safetensors", 10)
    small(tmp_path, "model-00002-of-00002.safetensors", 20)
    small(tmp_path, "model-00003-of-00003.safetensors", 999)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert folder_weights_bytes(tmp_path) == 120
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match="missing"):
        folder_weights_bytes(tmp_path)


def test_an_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(LoadError, match="outside"):
        weight_files(tmp_path)


def test_a_pipeline_counts_the_components_that_its_index_names(tmp_path: Path) -> None:
    for name, numbers in (("unet", 10), ("vae", 5), ("stale", 1000)):
        small(tmp_path / name, "diffusion_pytorch_model.safetensors", numbers)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    index = {
        "_class_name": "X",
        "unet": ["diffusers", "UNet"],
        "vae": ["diffusers", "Vae"],
        "scheduler": ["diffusers", "S"],
        "safety_checker": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert folder_weights_bytes(tmp_path) == 60


def test_pickled_weights_do_not_count_as_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(LoadError, match="no safetensors"):
        weight_files(tmp_path)
