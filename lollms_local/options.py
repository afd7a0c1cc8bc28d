"""Options: one declaration per setting, read by the code, by ``description.yaml`` and by the command line.

The host hands every configured value over as a string (and turns ``0`` into ``"False"``, ``1`` into ``"True"``), front
ends turn an absent number into ``0``, and callers pass ``None`` for "I did not say". So an :class:`Options` class
coerces by its own annotations and never uses ``None`` for a number: a field declares the value that means "let the
model or the engine choose" with :func:`auto`, and that value never hides a choice made in a lower layer.
"""

from __future__ import annotations

import json
import logging
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from typing_extensions import Self

from .errors import UnsupportedRequest

__all__ = ["Options", "auto", "choice"]

log = logging.getLogger(__name__)

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_UNSAID = (None, "None", "null")


def auto(value: Any, description: str, **constraints: Any) -> Any:
    """A field whose default ``value`` means "not said": lower layers, then the engine, choose."""
    return Field(value, description=description, json_schema_extra={"auto": True}, **constraints)


def choice(value: Any, description: str, **constraints: Any) -> Any:
    """A field with an ordinary default."""
    return Field(value, description=description, **constraints)


class Options(BaseModel):
    """Base of every options class: frozen, hashable, tolerant of the host's spellings, strict in its result."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=(), defer_build=True)

    #: other spellings that callers use -> our name, e.g. ``{"num_inference_steps": "steps"}``
    aliases: ClassVar[Mapping[str, str]] = {}

    @property
    def shape(self) -> str | None:
        """Names the requests that need as much memory as this one, on the same loaded model; None if it cannot say."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _coerce_all(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {k: _coerce(v, cls.model_fields[k].annotation) if k in cls.model_fields else v for k, v in data.items()}

    @classmethod
    def merge(cls, *layers: Mapping[str, Any]) -> Self:
        """Build the effective options from layers, strongest first.

        In each layer ``None``, ``"None"`` and a field's automatic value count as not said. Unknown names are ignored.

        Raises:
            UnsupportedRequest: a value has the wrong type or is out of range; names the option and the value.
        """
        said: dict[str, Any] = {}
        for layer in layers:
            for name, value in cls._known(layer).items():
                said.setdefault(name, value)
        try:
            return cls.model_validate(said)
        except ValidationError as exc:
            problem = exc.errors()[0]
            name = ".".join(str(part) for part in problem["loc"]) or cls.__name__
            raise UnsupportedRequest(
                f"The option {name}={problem.get('input')!r} is not valid: {problem['msg'].lower()}.",
                hint=cls._hint(name),
            ) from exc

    @classmethod
    def _known(cls, layer: Mapping[str, Any]) -> dict[str, Any]:
        """What one layer really says, under our names; our own spelling wins over an alias."""
        found: dict[str, Any] = {}
        for given, value in layer.items():
            name = cls.aliases.get(given, given)
            field = cls.model_fields.get(name)
            if field is None:
                continue
            if any(value is u or (isinstance(value, str) and value == u) for u in _UNSAID):
                continue
            coerced = _coerce(value, field.annotation)
            if coerced is None or (_is_auto(field) and coerced == field.default):
                continue
            if name == given or name not in found:
                found[name] = coerced
        return found

    @classmethod
    def _hint(cls, name: str) -> str:
        field = cls.model_fields.get(name.split(".")[0])
        return f"{name}: {field.description}" if field and field.description else ""

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """The parameter list that the host's ``description.yaml`` wants, one dictionary per field.

        Keys: ``name, type (str | int | float | bool), mandatory, default, description`` and, where the field has a
        closed set of values, ``options``. A list or mapping is offered as a JSON string.
        """
        rows = []
        for name, field in cls.model_fields.items():
            kind, choices = _host_type(field.annotation)
            default = field.get_default(call_default_factory=True)
            if kind == "str" and not isinstance(default, str):
                default = "" if not default else json.dumps(default)
            row: dict[str, Any] = {"name": name, "type": kind, "mandatory": False, "default": default}
            if choices:
                row["options"] = choices
            row["description"] = field.description or ""
            if _is_secret(field):
                row["is_secret"] = True
            rows.append(row)
        return rows


def _is_auto(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("auto"))


def _is_secret(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("is_secret"))


def _plain(annotation: Any) -> Any:
    """The annotation without ``| None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return inner[0] if len(inner) == 1 else annotation
    return annotation


def _host_type(annotation: Any) -> tuple[str, list[Any]]:
    plain = _plain(annotation)
    if get_origin(plain) is Literal:
        values = list(get_args(plain))
        return type(values[0]).__name__, values
    if plain in (bool, int, float, str):
        return str(plain.__name__), []
    return "str", []


def _coerce(value: Any, annotation: Any) -> Any:
    """One value to what its annotation wants, as far as that is unambiguous; pydantic judges the rest."""
    plain = _plain(annotation)
    if plain is bool:
        return _to_bool(value)
    if plain in (int, float):
        return _to_number(value, plain)
    if plain is str:
        return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else value
    if get_origin(plain) is Literal:
        return _to_choice(value, get_args(plain))
    if get_origin(plain) in (tuple, list, dict) and isinstance(value, str):
        return _from_json(value, get_origin(plain))
    if get_origin(plain) is tuple and isinstance(value, list):
        return tuple(value)
    return value


def _to_bool(value: Any) -> Any:
    word = str(value).strip().lower()
    if word in _TRUE or word in ("1.0",):
        return True
    if word in _FALSE or word in ("", "0.0"):
        return False
    return value


def _to_number(value: Any, kind: type) -> Any:
    if isinstance(value, bool):
        return kind(value)
    if isinstance(value, str):
        word = value.strip()
        if word.lower() in ("true", "false"):
            return kind(word.lower() == "true")
        if not word:
            return None
        try:
            value = float(word)
        except ValueError:
            return word
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _to_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """A member of a Literal, by spelling: the host may have turned "off" into "False"."""
    if value in choices:
        return value
    word = str(value).strip().lower()
    for member in choices:
        if word == str(member).lower():
            return member
    swapped = {"true": ("on", "yes"), "false": ("off", "no", "none")}.get(word, ())
    return next((m for m in choices if str(m).lower() in swapped), value)


def _from_json(value: str, kind: Any) -> Any:
    """A list or mapping that travelled as text: JSON, or names separated by commas."""
    text = value.strip()
    if not text:
        return kind()
    if text[0] in "[{":
        try:
            loaded = json.loads(text)
        except ValueError:
            try:
                loaded = json.loads(text.replace("'", '"'))
            except ValueError:
                return value
        return tuple(loaded) if kind is tuple and isinstance(loaded, list) else loaded
    if kind is dict:
        return value
    return kind(part.strip() for part in text.split(",") if part.strip())
