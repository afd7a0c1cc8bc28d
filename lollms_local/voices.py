"""Whose voice it is: voices belong to models, and a model may be a voice itself (Piper, VITS)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from . import weights
from .catalog import ModelSpec
from .engines import engine_class
from .errors import LocalModelError
from .runtime import Runtime

__all__ = ["DEFAULT_SPEAKER", "Voices"]

log = logging.getLogger(__name__)

#: speaks at once and offline
DEFAULT_SPEAKER = "piper-en-us-joe-medium"


@dataclass(frozen=True)
class Voices:
    """The voices of all models that speak.

    Attributes:
        runtime: knows the models.
        models_dir: where their files are.
        first: id of the model that is looked at before the others.
    """

    runtime: Runtime
    models_dir: Path
    first: str = DEFAULT_SPEAKER

    def all(self) -> list[str]:
        """Voices of `first`, then of the models on this disk, then of the others."""
        return list(dict.fromkeys(voice for spec in self._speakers() for voice in self.of(spec)))

    def of(self, spec: ModelSpec) -> list[str]:
        """Voices of one model; for one that is not downloaded, what can be said without its files."""
        try:
            path = weights.locate(spec, self.models_dir)
        except LocalModelError:
            path = None
        try:
            return list(engine_class(spec.engine).voices(spec, path))
        except LocalModelError as exc:
            log.debug("%s: no voices: %s", spec.id, exc)
            return []

    def has(self, spec: ModelSpec, voice: str) -> bool:
        """Whether the voice is the model's; which speakers a voice has ("voice#speaker"), the engine knows."""
        base = voice.partition("#")[0]
        return base == spec.id or not {voice, base}.isdisjoint(self.of(spec))

    def owner(self, voice: str) -> ModelSpec | None:
        """The model that has the voice."""
        return next((spec for spec in self._speakers() if self.has(spec, voice)), None)

    def model(self, name: str) -> ModelSpec:
        """A model by its name, or by that of one of its voices.

        Raises:
            ModelNotFound: it is neither.
        """
        known = name in self.runtime.catalog or Path(name).is_absolute()
        owner = None if known else self.owner(name)
        return owner or self.runtime.resolve(name, "tts", self.models_dir)

    def settle(self, spec: ModelSpec, voice: str, *, fixed: bool) -> tuple[ModelSpec, str]:
        """The model that speaks, and the voice to ask it for; "" = its usual one.

        Args:
            spec: the model as chosen so far.
            voice: as named by the caller, or "".
            fixed: the caller has named the model too; then a voice that it does not have is for the engine to refuse.
        """
        if voice and not fixed and not self.has(spec, voice):
            spec = self.owner(voice) or spec
        if voice == spec.id and voice not in self.of(spec):
            voice = ""  # a model named as a voice
        return spec, voice

    def _speakers(self) -> list[ModelSpec]:
        rows = sorted(self.runtime.models("tts", self.models_dir), key=lambda row: not row[1])
        first = [spec for spec, _ in rows if spec.id == self.first]
        return first + [spec for spec, _ in rows if spec not in first]
