"""What "installed" means: a manifest beside the files, written last, and the folder renamed into place as a whole."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .catalog import ModelSpec

__all__ = ["MANIFEST", "FileRecord", "Manifest", "has_all_files", "is_installed", "sha256_of"]

MANIFEST = ".lollms_local.json"
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".onnx")


@dataclass(frozen=True)
class FileRecord:
    """One installed file: its path below the model's folder (POSIX), size and digest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was installed, from where.

    Attributes:
        source: the catalogue's source, as written there.
        revision: what it resolved to (a commit, or a package's version).
        files: every file.
    """

    source: str
    revision: str
    files: tuple[FileRecord, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, or None if it has no valid one."""
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return cls(data["source"], data["revision"], tuple(FileRecord(**row) for row in data["files"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, folder: Path) -> None:
        """Write it so that it is either whole or absent, also after a power cut."""
        temporary = folder / (MANIFEST + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / MANIFEST)


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file; `on_bytes` is told after each piece how many bytes it had."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    return digest.hexdigest()


def is_installed(spec: ModelSpec, folder: Path) -> bool:
    """True if the folder holds this model, whole: by its manifest, or by the catalogue's list if put there by hand."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return has_all_files(spec, folder)
    if manifest.source != spec.source:
        return False
    return all(_size(folder / record.path) == record.bytes for record in manifest.files)


def has_all_files(spec: ModelSpec, folder: Path) -> bool:
    """True if a folder without a manifest has all that the catalogue names; where it names nothing, whole weights."""
    if not folder.is_dir() or any(True for _ in folder.rglob("*.incomplete")):
        return False
    if not spec.files:
        return _has_weights(folder)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    for rule in spec.files:
        if any(mark in rule.path for mark in "*?["):
            if not any(fnmatch.fnmatch(name, rule.path) for name in names):
                return False
        elif _size(folder / rule.path) not in ({rule.bytes} if rule.bytes else _any_size(names, rule.path, folder)):
            return False
    return _shards_are_whole(folder)


def _any_size(names: Iterable[str], path: str, folder: Path) -> set[int]:
    return {_size(folder / path)} if path in names else set()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _has_weights(folder: Path) -> bool:
    files = [p for p in folder.rglob("*") if p.is_file()]
    if not any(p.suffix.lower() in _WEIGHT_SUFFIXES or p.name == "model.bin" for p in files):
        return False
    index = _json(folder / "model_index.json")
    parts = [folder / name for name, row in index.items() if isinstance(row, list) and len(row) == 2 and all(row)]
    if any(not part.is_dir() for part in parts):
        return False
    with_weights = [part for part in parts if (part / "config.json").is_file()]
    return all(any(part.glob("*.safetensors")) for part in with_weights) and _shards_are_whole(folder)


def _shards_are_whole(folder: Path) -> bool:
    for index in folder.rglob("*.safetensors.index*.json"):
        table = _json(index).get("weight_map")
        if isinstance(table, dict) and any(not (index.parent / str(name)).is_file() for name in set(table.values())):
            return False
    return True


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
