"""Which files may come in, and what is refused: pickles, links, names that leave their folder, archives that swell.

A pickle runs code when it is read. Only formats that hold nothing but data are let in: safetensors, GGUF, CTranslate2,
ONNX, NumPy arrays without objects, and text. The magic bytes decide, whatever a file is called.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path, PurePosixPath

from .errors import LoadError

__all__ = ["SAFE_SUFFIXES", "check_file", "inside", "is_ctranslate2", "is_safe_name", "refuse_pickles"]

#: suffixes that a download lets in; ".bin" only where CTranslate2 writes it
SAFE_SUFFIXES = frozenset(
    [
        ".safetensors",
        ".gguf",
        ".json",
        ".jsonl",
        ".txt",
        ".model",
        ".onnx",
        ".npz",
        ".npy",
        ".yaml",
        ".yml",
        ".md",
        ".tiktoken",
        ".jinja",
        ".vocab",
    ]
)
_SAFE_NAMES = frozenset({"model.bin", "MODEL_CARD", "LICENSE", "NOTICE"})
_PICKLE_SUFFIXES = frozenset([".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".h5", ".keras"])
_SEVEN_ZIP, _GZIP, _BZIP2, _XZ = b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_HINT = "Such files can run code when they are read; look for the same model as safetensors, GGUF or ONNX."


def is_safe_name(name: str) -> bool:
    """True if a file of this name (POSIX path below a model's folder) may be downloaded."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or ":" in name or any(part.startswith(".") for part in path.parts):
        return False  # "..", hidden files and folders, drive letters
    return path.name in _SAFE_NAMES or path.suffix.lower() in SAFE_SUFFIXES


def inside(folder: Path, name: str) -> Path:
    """The path of a file below a folder.

    Raises:
        LoadError: the name leads out of the folder, or through a link.
    """
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()) or target.resolve() == folder.resolve():
        raise LoadError(
            f"The file name {name!r} leads out of the model's folder.", hint="The source is not to be trusted."
        )
    return target


def is_ctranslate2(path: Path) -> bool:
    """True if the file starts as CTranslate2 writes one: a version, then the name of a model specification."""
    with path.open("rb") as file:
        head = file.read(6)
        if len(head) < 6:
            return False
        version, length = struct.unpack("<IH", head)
        return 1 <= version <= 100 and 1 <= length <= 128 and file.read(length).rstrip(b"\0").endswith(b"Spec")


def check_file(path: Path) -> None:
    """Refuse a file whose first bytes are those of a pickle or of an archive, under any name.

    Raises:
        LoadError: it is one, or it is a `.bin` that CTranslate2 did not write.
    """
    with path.open("rb") as file:
        head = file.read(16)
    suffix = path.suffix.lower()
    if suffix in _PICKLE_SUFFIXES:
        raise LoadError(f"The file {path.name} is of a kind that holds pickled objects.", hint=_HINT)
    if head[:2] == b"PK":
        if suffix != ".npz" or not _holds_only_arrays(path):
            raise LoadError(f"The file {path.name} is a zip archive, as torch writes pickled weights.", hint=_HINT)
        return
    if _is_pickle(head):
        raise LoadError(f"The file {path.name} is a pickle.", hint=_HINT)
    if head.startswith((_SEVEN_ZIP, _GZIP, _BZIP2, _XZ)):
        raise LoadError(f"The file {path.name} is a packed archive, not a model.", hint=_HINT)
    if suffix == ".bin" and not is_ctranslate2(path):
        raise LoadError(f"The file {path.name} was not written by CTranslate2.", hint=_HINT)
    if suffix == ".npy" and head[:6] != b"\x93NUMPY":
        raise LoadError(f"The file {path.name} is not a NumPy array.", hint=_HINT)


def _is_pickle(head: bytes) -> bool:
    """Protocols 2 and later start with 0x80 and their number; 0 and 1 as a list, mapping, tuple or global starts."""
    if len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 8:
        return True
    return head.startswith((b"(lp", b"(dp", b"(tp", b"cos\n", b"cposix\n", b"cnt\n", b"c__builtin__\n", b"cbuiltins\n"))


def _holds_only_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") and "/" not in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def refuse_pickles(folder: Path) -> None:
    """Look at the first bytes of every file of a model (a folder, or one file) before a library opens it.

    Raises:
        LoadError: one of them could run code, or a link leads out of the folder (into the hub's own cache is allowed).
    """
    if folder.is_file():
        check_file(folder)
        return
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        if path.is_symlink() and not _is_hub_blob(path, folder):
            raise LoadError(
                f"The file {path} is a link that leads out of the model's folder.", hint="Copy the file there."
            )
        if not _lies_unused(path):
            check_file(path)


def _lies_unused(path: Path) -> bool:
    """An honest pickle beside safe weights, as many repositories have: no engine opens it."""
    honest = path.suffix.lower() in _PICKLE_SUFFIXES or (path.suffix.lower() == ".bin" and path.name != "model.bin")
    return honest and any(path.parent.glob("*.safetensors"))


def _is_hub_blob(path: Path, folder: Path) -> bool:
    """A link within the folder, or from `<cache>/models--x/snapshots/<revision>/` to `<cache>/models--x/blobs/`."""
    target = path.resolve()
    if target.is_relative_to(folder.resolve()):
        return True
    snapshots = folder.parent
    return snapshots.name == "snapshots" and target.is_relative_to((snapshots.parent / "blobs").resolve())
