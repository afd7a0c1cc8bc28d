"""The reader of ELF files: files made here, the installed libraries, damaged ones; and what doctor makes of it."""

from __future__ import annotations

import platform
import random
import struct
from pathlib import Path

import pytest

from lollms_local.cli import doctor, native
from lollms_local.devices import Device
from lollms_local.elf import needed_libraries


def elf(*needed: str, wide: bool = True, order: str = "<", address: int = 0x1000) -> bytes:
    """The smallest library that asks for these: header, two segments, dynamic section, names."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    word, half = ("Q", "q") if wide else ("I", "i")
    head_bytes, row_bytes = (64, 56) if wide else (52, 32)
    dynamic_at = head_bytes + 2 * row_bytes
    entry = struct.Struct(order + half + word)
    names_at = dynamic_at + entry.size * (len(needed) + 3)
    offsets = [1 + sum(len(n) + 1 for n in needed[:i]) for i in range(len(needed))]
    tags = [(1, o) for o in offsets] + [(5, address + names_at), (10, len(names)), (0, 0)]
    dynamic = b"".join(entry.pack(*tag) for tag in tags)
    total = names_at + len(names)

    def row(kind: int, offset: int, size: int) -> bytes:
        if wide:
            return struct.pack(order + "IIQQQQQQ", kind, 4, offset, address + offset, 0, size, size, 8)
        return struct.pack(order + "IIIIIIII", kind, offset, address + offset, 0, size, size, 4, 4)

    magic = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    head = struct.pack(
        order + f"HHI{word}{word}{word}IHHHHHH", 3, 62, 1, 0, head_bytes, 0, 0, head_bytes, row_bytes, 2, 0, 0, 0
    )
    return magic + head + row(1, 0, total) + row(2, dynamic_at, len(dynamic)) + dynamic + names


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_names_are_read_in_their_order(tmp_path: Path, wide: bool, order: str) -> None:
    names = ["libggml.so.0", "libstdc++.so.6", "libc.so.6"]
    assert needed_libraries(written(tmp_path, "x.so", elf(*names, wide=wide, order=order))) == names
    assert needed_libraries(written(tmp_path, "y.so", elf(wide=wide, order=order))) == []


def test_what_is_no_elf_file_is_unknown(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"MZ" + bytes(500), b"INPUT(libllama.so.0)", bytes(4096)):
        assert needed_libraries(written(tmp_path, "x.so", content)) is None


def test_a_file_cut_anywhere_is_unknown_and_raises_nothing(tmp_path: Path) -> None:
    whole = elf("libstdc++.so.6")
    for length in range(len(whole)):
        assert needed_libraries(written(tmp_path, "x.so", whole[:length])) is None, length


def test_damage_anywhere_gives_names_or_nothing_and_never_an_error(tmp_path: Path) -> None:
    chance = random.Random(3)
    whole = elf("libstdc++.so.6", "libm.so.6")
    for _ in range(3000):
        broken = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        found = needed_libraries(written(tmp_path, "x.so", bytes(broken)))
        assert found is None or all(isinstance(name, str) for name in found)


def test_counts_that_lie_take_no_time_and_no_memory(tmp_path: Path) -> None:
    whole = bytearray(elf("libstdc++.so.6"))
    struct.pack_into("<H", whole, 56, 0xFFFF)  # segments
    assert needed_libraries(written(tmp_path, "x.so", bytes(whole))) is None
    whole = bytearray(elf("libstdc++.so.6"))
    struct.pack_into("<Q", whole, 64 + 56 + 32, 1 << 62)  # bytes of the dynamic section
    assert needed_libraries(written(tmp_path, "x.so", bytes(whole))) is None


# --- doctor ---------------------------------------------------------------------------------------------------------


def check(monkeypatch: pytest.MonkeyPatch, folder: Path) -> doctor.Check:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    return next(c for c in doctor.diagnose() if c.name == "llama.cpp runtime")


def test_the_installed_llama_cpp_shares_its_cpp_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.system() != "Linux":
        return
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    libraries = native.llama_libraries()
    assert any("libllama" in path.name for path in libraries) and any("libggml" in path.name for path in libraries)
    assert native.look_at_runtime(libraries).kind == "shared"
    found = next(c for c in doctor.diagnose() if c.name == "llama.cpp runtime")
    assert found.verdict == "ok" and not found.mend


def test_a_static_runtime_beside_torch_is_bad_and_the_mend_is_a_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if platform.system() != "Linux":
        return
    written(tmp_path, "libllama.so", elf("libggml.so", "libm.so.6", "libc.so.6"))
    written(tmp_path, "libggml-base.so", elf("libm.so.6"))
    found = check(monkeypatch, tmp_path)
    assert found.verdict == "bad" and "segmentation fault" in found.detail and "libllama.so" in found.detail
    assert "pip install --no-cache-dir --force-reinstall --no-binary llama-cpp-python llama-cpp-python" in found.mend
    assert "-static-libstdc++" in found.mend


def test_one_library_with_the_shared_runtime_is_enough_and_none_that_can_be_read_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if platform.system() != "Linux":
        return
    written(tmp_path, "libllama.so", b"not a library")
    found = check(monkeypatch, tmp_path)
    assert found.verdict == "note" and "could be read" in found.detail and found.mend
    written(tmp_path, "libggml-base.so", elf("libstdc++.so.6"))
    assert check(monkeypatch, tmp_path).verdict == "ok"


@pytest.mark.parametrize(
    ("libraries", "verdict", "says"),
    [
        ({"libllama.so": (), "libggml-cpu.so": ()}, "bad", "CPU only, but there is Some Card"),
        ({"libllama.so": (), "libggml-cuda.so": ()}, "ok", "built for cuda"),
        ({"libllama.so": (), "libggml.so": ("libcudart.so.12",)}, "ok", "built for cuda"),
    ],
)
def test_a_llama_cpp_without_the_card_is_found_and_the_mend_builds_it_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, libraries: dict[str, tuple[str, ...]], verdict: str, says: str
) -> None:
    if platform.system() != "Linux":
        return
    for name, needed in libraries.items():
        written(tmp_path, name, elf("libstdc++.so.6", *needed))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "available_devices", lambda: [Device("cuda", name="Some Card"), Device("cpu")])
    found = {c.name: c for c in doctor._native()}
    assert found["llama.cpp device"].verdict == verdict and says in found["llama.cpp device"].detail
    assert verdict == "ok" or "-DGGML_CUDA=on" in found["llama.cpp device"].mend


def test_cublas_is_looked_for_where_the_loader_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if platform.system() != "Linux":
        return
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    written(tmp_path, "libcublas.so.12", b"")
    assert native.needs_cublas() is False


def test_every_check_that_is_not_good_says_what_mends_it_whatever_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_runtime: object
) -> None:
    for name in ("libllama.so", "libggml-base.so"):
        written(tmp_path, name, elf("libc.so.6"))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "missing_packages", lambda engine: ["nothing"])
    monkeypatch.setattr(doctor, "host_folder", lambda: None)
    checks = list(doctor.diagnose())
    assert any(c.verdict != "ok" for c in checks)
    assert not [c.name for c in checks if c.verdict != "ok" and not c.mend]
