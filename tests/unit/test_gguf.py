"""GGUF headers: read whole, believed in nothing; what a damaged file does is a typed error or a clean load."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lollms_local.errors import LoadError
from lollms_local.gguf import GGML_TYPES, read_gguf, read_gguf_model, split_files
from tests.tiny import gguf

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def header_bytes(path: Path) -> int:
    header = read_gguf(path)
    return path.stat().st_size - max(t.offset + t.nbytes for t in header.tensors.values())


def test_a_header_is_read_whole(tiny: Path) -> None:
    header, weights = read_gguf_model(tiny)
    assert (header.architecture, header.version, header.vocabulary_size) == ("llama", 3, 273)
    assert header.of_arch("attention.head_count_kv") == 2 and header.of_arch("missing", 7) == 7
    assert header.metadata["tokenizer.chat_template"] == gguf.CHATML
    assert header.tensors["blk.1.ffn_down.weight"].shape == (128, 64)
    assert header.tensors["blk.1.ffn_down.weight"].nbytes == 64 * 128 * 4
    assert weights == sum(t.nbytes for t in header.tensors.values()) < tiny.stat().st_size


def test_the_real_model_s_header_says_what_the_library_says(models_dir: Path) -> None:
    path = models_dir / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    header, weights = read_gguf_model(path)
    assert header.architecture == "llama" and header.vocabulary_size == 49152 and header.of_arch("block_count") == 30
    assert weights / 1e6 == pytest.approx(96.57, abs=0.1)  # llama_model_size()


def test_the_table_of_number_formats_is_the_library_s() -> None:
    import llama_cpp.llama_cpp  # loads the library that has these functions
    from llama_cpp._ggml import libggml

    libggml.ggml_type_size.restype = libggml.ggml_blck_size.restype = __import__("ctypes").c_int64
    libggml.ggml_type_size.restype = __import__("ctypes").c_size_t
    for number, (name, block, block_bytes) in GGML_TYPES.items():
        assert (libggml.ggml_blck_size(number), libggml.ggml_type_size(number)) == (block, block_bytes), name
    assert llama_cpp.llama_cpp


def patched(path: Path, folder: Path, at: int, data: bytes) -> Path:
    copy = bytearray(path.read_bytes())
    copy[at : at + len(data)] = data
    made = folder / "patched.gguf"
    made.write_bytes(copy)
    return made


def test_each_claim_is_checked_and_the_error_says_which(tiny: Path, tmp_path: Path) -> None:
    huge = struct.pack("<Q", 1 << 60)
    whole = tiny.read_bytes()
    cases: list[tuple[int, bytes, str]] = [
        (0, b"GGML", "is not a GGUF file"),
        (4, struct.pack("<I", 1), "is GGUF version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, huge, "it claims 1152921504606846976 tensors"),
        (16, huge, "it claims"),
        (24, huge, "its header wants"),
        (whole.index(b"llama.block_count") + 17, struct.pack("<I", 99), "unknown type 99"),
        (whole.index(b"llama.block_count") + 21, struct.pack("<I", 1 << 30), "block_count is 1073741824"),
        (whole.index(b"tokenizer.ggml.tokens") + 21 + 8, huge, "a list of"),
        (whole.index(b"blk.0.attn_q.weight") + 19, struct.pack("<I", 9), "has 9 dimensions"),
        (whole.index(b"blk.0.attn_q.weight") + 23, huge, "larger than the file"),
        (whole.index(b"blk.0.attn_q.weight") + 39, struct.pack("<I", 4), "number format 4"),
        (whole.index(b"blk.0.attn_q.weight") + 43, struct.pack("<Q", 1 << 40), "lies outside the file"),
        (whole.index(b"blk.0.attn_q.weight") + 43, struct.pack("<Q", 3), "lies outside the file"),
        (whole.index(b"blk.0.attn_q.weight") + 43, struct.pack("<Q", 0), "overlap"),
        (whole.index(b"blk.0.attn_q.weight"), b"blk.0.attn_k.weight", "the same name"),
        (whole.index("ÿ".encode()), "þ".encode(), "two tokens of its vocabulary are the same"),
        (whole.index(b"tokenizer.ggml.token_type") + 25 + 4, struct.pack("<I", 6), "has not a number for each of 273"),
    ]
    for at, data, why in cases:
        with pytest.raises(LoadError) as caught:
            read_gguf_model(patched(tiny, tmp_path, at, data))
        assert why in str(caught.value) + caught.value.hint, (data, str(caught.value))


def test_what_is_no_model_is_said_to_be_none(tiny: Path, tmp_path: Path) -> None:
    for data in (b"", b"GGUF", bytes(4096), b"GGUF" + bytes(20), tiny.read_bytes()[:5000]):
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises(LoadError):
            read_gguf_model(tmp_path / "x.gguf")
    with pytest.raises(LoadError, match="cannot be read"):
        read_gguf_model(tmp_path / "none.gguf")
    with pytest.raises(LoadError, match="not a language model"):
        read_gguf_model(gguf.lora(tmp_path / "lora.gguf"))


def test_all_parts_of_a_split_model_must_be_there(tmp_path: Path) -> None:
    for number in (1, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(b"")
    with pytest.raises(LoadError, match=r"m-00002-of-00003\.gguf"):
        split_files(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(LoadError, match="99999 parts"):
        split_files(tmp_path / "m-00001-of-99999.gguf")
    assert split_files(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]


def test_a_thousand_damaged_files_are_errors_of_ours_or_clean(tiny: Path, tmp_path: Path) -> None:
    refused = 0
    for number, data in enumerate(gguf.damaged(tiny.read_bytes(), 1000, header_bytes=header_bytes(tiny))):
        path = tmp_path / f"{number}.gguf"  # another name each: headers are remembered by name, size and time
        path.write_bytes(data)
        try:
            read_gguf_model(path)
        except LoadError as exc:
            refused += 1
            assert len(str(exc)) < 600
        path.unlink()
    assert 500 < refused < 1000, "some damage is in a name or a text, and no parser can know"


def test_damaged_files_that_look_whole_do_not_end_the_process(tiny: Path, tmp_path: Path) -> None:
    """Those that our own check lets pass go to the native parser and write an answer, all in one other process."""
    script = """
import sys
from pathlib import Path
from lollms_local.errors import LocalModelError
from tests.engines.llama_models import ask, opened
from tests.tiny import gguf
from tests.unit.test_gguf import header_bytes
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
loaded = refused = 0
for number, data in enumerate(gguf.damaged(source.read_bytes(), 1000, header_bytes=header_bytes(source))):
    path = folder / f"{number}.gguf"
    path.write_bytes(data)
    try:
        with opened(path, ctx_size=256, prompt_cache_mb=0) as model:
            ask(model, "Hello", n_predict=2)
            loaded += 1
    except LocalModelError:
        refused += 1
    path.unlink()
print(loaded, refused)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tiny), str(tmp_path)],
        cwd=TOP, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    loaded, refused = map(int, run.stdout.split())
    assert loaded + refused == 1000 and loaded > 20
