"""Bark's voice presets: arrays of codes in the model's folder, read without pickle and without network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import LoadError, UnsupportedRequest

__all__ = ["LANGUAGES", "choose", "language_of", "names", "read"]

LANGUAGES = ("de", "en", "es", "fr", "hi", "it", "ja", "ko", "pl", "pt", "ru", "tr", "zh")
INDEX = "speaker_embeddings_path.json"
#: dimensions of each array
_SHAPES = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}
#: a clear and steady speaker in every language
_FAVOURITE = 6


def names(folder: Path | None) -> list[str]:
    """Presets in a folder; without one, the 130 that the published models come with (10 for each language)."""
    if folder is None:
        return [f"v2/{language}_speaker_{n}" for language in LANGUAGES for n in range(10)]
    return [name for name in _index(folder) if name != "repo_or_path"]


def language_of(voice: str) -> str:
    """ "de" of "v2/de_speaker_3"; "" if the name does not say."""
    code = voice.rpartition("/")[2].partition("_")[0]
    return code if code in LANGUAGES else ""


def choose(folder: Path, voice: str, language: str) -> tuple[str, dict[str, Any] | None]:
    """A preset's name and arrays; ("", None) where the model is to make up a voice.

    Args:
        folder: the model's.
        voice: a preset's name, with or without "v2/"; "random"; or "" for the usual one of the language.
        language: ISO 639-1, or "" for English.

    Raises:
        UnsupportedRequest: there is no such preset. LoadError: its files are damaged.
    """
    if voice == "random":
        return "", None
    known = names(folder)
    if voice:
        for name in (f"v2/{voice}", voice):
            if name in known:
                return name, read(folder, name)
        listed = ", ".join(known[:4]) + ", ..." if known else "none: this model comes without presets"
        raise UnsupportedRequest(f"Bark has no voice {voice!r}.", hint=f'The voices are {listed}; or use "random".')
    spoken = language or "en"
    usual = [n for n in (f"v2/{spoken}_speaker_{_FAVOURITE}", f"{spoken}_speaker_{_FAVOURITE}") if n in known]
    usual += [n for n in known if language_of(n) == spoken]
    return (usual[0], read(folder, usual[0])) if usual else ("", None)


def read(folder: Path, name: str) -> dict[str, Any]:
    """The arrays of a preset: semantic_prompt [n], coarse_prompt [2, T], fine_prompt [8, T].

    Raises:
        LoadError: a file is missing, outside the folder, or not what it should be.
    """
    import numpy as np

    row = _index(folder).get(name)
    arrays: dict[str, Any] = {}
    for key, dimensions in _SHAPES.items():
        relative = row.get(key) if isinstance(row, dict) else None
        if not isinstance(relative, str) or Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise _damaged(name, f"its entry {key} is not a file of the model")
        try:
            array = np.load(folder / relative, allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise _damaged(name, f"{relative} is missing or not an array") from exc
        if (
            not isinstance(array, np.ndarray)
            or array.ndim != dimensions
            or array.dtype.kind not in "iu"
            or not array.size
        ):
            raise _damaged(name, f"{relative} does not hold codes")
        if int(array.min()) < 0 or int(array.max()) >= 10_000:
            raise _damaged(name, f"{relative} holds codes that no model has")
        arrays[key] = array.astype(np.int64)
    return arrays


def _index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.is_file():
        return {}
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise LoadError(f"{file} is damaged.", hint="Remove the model and download it again.") from exc
    return table if isinstance(table, dict) else {}


def _damaged(name: str, why: str) -> LoadError:
    return LoadError(f"The voice {name} is damaged: {why}.", hint="Remove the model and download it again.")
