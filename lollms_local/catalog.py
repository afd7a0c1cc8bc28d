"""The catalogue of models: strict records read from models.yaml and from the user's own file beside the models.

A record says what a model is, where its files come from and which settings suit it. It never says how much memory it
needs: that is read from the files themselves (`footprint`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import CatalogError, ModelNotFound
from .modalities.base import Modality

__all__ = ["Catalog", "FileRule", "ModelSpec", "Source", "builtin_catalog_path"]

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$")


@dataclass(frozen=True)
class Source:
    """Where a model's files come from.

    Attributes:
        kind: "hf" (a Hugging Face repository), "pypi" (files carried by a wheel) or "path" (already on this disk).
        name: "org/repo", the distribution's name, or the path.
        version: git revision or package version; "" = the newest.
    """

    kind: Literal["hf", "pypi", "path"]
    name: str
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read "hf:org/repo[@revision]", "pypi:name==version" or "path:/some/where".

        Raises:
            ValueError: the text is none of these.
        """
        kind, _, rest = text.partition(":")
        if kind == "hf" and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", rest):
            name, _, version = rest.partition("@")
            return cls("hf", name, version)
        if kind == "pypi" and re.fullmatch(r"\w[\w.-]*(==[\w.]+)?", rest):
            name, _, version = rest.partition("==")
            return cls("pypi", name, version)
        if kind == "path" and rest:
            return cls("path", rest)
        raise ValueError(f"{text!r} is not hf:org/repo[@revision], pypi:name==version or path:/folder")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FileRule(_Strict):
    """One file of a model, or a pattern of files in a Hugging Face repository.

    Attributes:
        path: name below the model's folder; for an `hf` source it may be a glob pattern.
        member: for a `pypi` source: the file's name inside the wheel.
        sha256: pinned digest; "" = not pinned (then the hub's own, recorded at download).
        bytes: size, for the download plan; 0 = unknown.
    """

    path: str
    member: str = ""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    bytes: int = Field(0, ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if value.startswith(("/", "\\")) or ".." in Path(value).parts or ":" in value or "\\" in value:
            raise ValueError("a file's path must stay inside the model's folder")
        return value


class ModelSpec(_Strict):
    """One model.

    Attributes:
        id: the name users type; unique, safe as a folder name.
        modality: llm, tti, stt, tts, ttv or ttm.
        engine: key of the table of engines, e.g. "llama_cpp".
        source: see `Source.parse`.
        files: what to fetch; empty = the engine's usual files of that repository.
        licence: SPDX id, or the licence's own name where it has none.
        gated: True if the hub asks for a login and an accepted licence.
        sets: named groups it belongs to (starter, cpu, gpu-8gb ...).
        defaults: option values that suit this model; they lose against the user's.
        languages: ISO 639-1 codes, where the model is limited to some.
        variant: for diffusers folders that hold several: the one to use, e.g. "fp16".
        verified: False while nobody has run this download.
    """

    id: str
    modality: Modality
    engine: str
    source: str
    title: str = ""
    description: str = ""
    files: tuple[FileRule, ...] = ()
    licence: str = ""
    gated: bool = False
    sets: tuple[str, ...] = ()
    defaults: dict[str, Any] = Field(default_factory=dict)
    languages: tuple[str, ...] = ()
    variant: str = ""
    verified: bool = False

    @field_validator("files", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """A bare string is a path."""
        return (
            tuple({"path": v} if isinstance(v, str) else v for v in value)
            if isinstance(value, (list, tuple))
            else value
        )

    @field_validator("id")
    @classmethod
    def _safe_id(cls, value: str) -> str:
        if not _ID.match(value):
            raise ValueError("an id has letters, digits, '.', '_' and '-' only, and starts with a letter or digit")
        return value

    @field_validator("source")
    @classmethod
    def _readable_source(cls, value: str) -> str:
        Source.parse(value)
        return value

    @property
    def origin(self) -> Source:
        """The parsed source."""
        return Source.parse(self.source)

    def __hash__(self) -> int:
        return hash((self.id, self.source))


def builtin_catalog_path() -> Path:
    """models.yaml: beside the package when installed, at the top of the source tree otherwise."""
    packaged = Path(str(resources.files("lollms_local"))) / "models.yaml"
    return packaged if packaged.is_file() else packaged.parent.parent / "models.yaml"


class Catalog:
    """An ordered set of models by id.

    Args:
        specs: the records; a later one replaces an earlier one of the same id, so that a user can override ours.
    """

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        self._specs = {spec.id: spec for spec in specs}

    @classmethod
    def read(cls, *files: Path) -> Catalog:
        """Read catalogue files in order; a missing file is an empty one.

        Raises:
            CatalogError: a file is not valid; names the file, the model and the key.
        """
        return cls(spec for file in files if file.is_file() for spec in _read_file(file))

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._specs

    def select(self, *, modality: Modality | None = None, model_set: str = "") -> list[ModelSpec]:
        """Models of a modality and/or of a named set, in the catalogue's order."""
        return [
            s for s in self if (modality is None or s.modality == modality) and (not model_set or model_set in s.sets)
        ]

    def get(self, model_id: str, modality: Modality | None = None) -> ModelSpec:
        """The model of that id, or of that Hugging Face repository.

        Raises:
            ModelNotFound: there is none (the hint lists near names), or it is of another modality.
        """
        spec = self._specs.get(model_id) or next(
            (s for s in self if s.origin.kind == "hf" and s.origin.name.lower() == model_id.lower()), None
        )
        if spec is None:
            raise ModelNotFound(
                f"There is no model {model_id!r} in the catalogue.", hint=self._near(model_id, modality)
            )
        if modality is not None and spec.modality != modality:
            raise ModelNotFound(
                f"The model {model_id!r} is for {spec.modality}, not for {modality}.", hint=self._near("", modality)
            )
        return spec

    def _near(self, model_id: str, modality: Modality | None) -> str:
        names = [s.id for s in self.select(modality=modality)]
        near = difflib.get_close_matches(model_id, names, n=3, cutoff=0.4) or names[:3]
        listing = f'"lollms-local models list{f" --modality {modality}" if modality else ""}" shows all.'
        return f"Near names: {', '.join(near)}; {listing}" if near else listing


def _read_file(file: Path) -> list[ModelSpec]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise CatalogError(
            f"{file}{where} cannot be read as YAML.", hint="Compare it with the models.yaml we ship."
        ) from exc
    if data is None:
        return []
    if not isinstance(data, dict) or not isinstance(data.get("models"), list) or set(data) - {"version", "models"}:
        raise CatalogError(f"{file} must hold the keys 'version' and 'models' (a list) and no others.")
    return [_read_entry(file, number, entry) for number, entry in enumerate(data["models"], 1)]


def _read_entry(file: Path, number: int, entry: Any) -> ModelSpec:
    name = entry.get("id", f"number {number}") if isinstance(entry, dict) else f"number {number}"
    try:
        return ModelSpec.model_validate(entry)
    except ValidationError as exc:
        problem = exc.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CatalogError(f"{file}, model {name}, key {key!r}: {problem['msg'].lower()}.") from exc
