"""What the shell offers when the Tab key is pressed; the shell's own side is typer's (`--install-completion`)."""

from __future__ import annotations

import typer

from ..catalog import Catalog, builtin_catalog_path
from ..errors import LocalModelError
from ..modalities.base import MODALITIES
from ..weights import models_dir

__all__ = ["modalities", "model_names", "sets"]

#: what the commands with a --model work on
_COMMANDS = {
    "chat": "llm",
    "run": "llm",
    "image": "tti",
    "edit": "tti",
    "transcribe": "stt",
    "speak": "tts",
    "voices": "tts",
    "video": "ttv",
    "music": "ttm",
}


def model_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of the catalogue and folders of the models folder, for the modality of the command."""
    modality = _COMMANDS.get(ctx.info_name or "") or ctx.params.get("modality") or ""
    catalog = _catalog()
    found = {s.id: s.title for s in catalog if modality in ("", s.modality)}
    found.update({name: "in the models folder" for name in _folders() if name not in catalog})
    return [(name, title) for name, title in found.items() if name.startswith(incomplete)]


def sets(incomplete: str) -> list[str]:
    """Named sets of the catalogue."""
    return sorted({name for spec in _catalog() for name in spec.sets if name.startswith(incomplete)})


def modalities(incomplete: str) -> list[str]:
    """The six."""
    return [name for name in MODALITIES if name.startswith(incomplete)]


def _catalog() -> Catalog:
    try:
        return Catalog.read(builtin_catalog_path(), models_dir() / "models.yaml")
    except LocalModelError:  # while somebody types is no moment to say so; the command itself will
        return Catalog.read(builtin_catalog_path())


def _folders() -> list[str]:
    folder = models_dir()
    return (
        sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != "models.yaml")
        if folder.is_dir()
        else []
    )
