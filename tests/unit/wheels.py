"""Wheels made at test time, and a pip that sees nothing else: the index is a folder, the network is switched off."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from lollms_local.catalog import FileRule, ModelSpec

__all__ = ["make_wheel", "only_this_index", "rule", "spec_of"]


def make_wheel(folder: Path, members: dict[str, bytes], *, name: str = "fake_weights", version: str = "1.0") -> Path:
    """A wheel with these members, valid enough for pip to download it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def only_this_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Point pip at a folder and at nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def rule(path: str, content: bytes, member: str = "", *, pinned: bool = True) -> FileRule:
    """A catalogue row for a file of this content."""
    digest = hashlib.sha256(content).hexdigest() if pinned else ""
    return FileRule(path=path, member=member or path, sha256=digest, bytes=len(content) if pinned else 0)


def spec_of(*files: FileRule, source: str = "pypi:fake-weights==1.0", model_id: str = "fake") -> ModelSpec:
    """A catalogue entry."""
    return ModelSpec(id=model_id, modality="stt", engine="faster_whisper", source=source, files=files)
