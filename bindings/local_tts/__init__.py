"""Text to speech for the LoLLMS host: Piper and Bark voices in this process, by `lollms_local`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_tts_binding import LollmsTTSBinding

from lollms_local import weights
from lollms_local.catalog import ModelSpec
from lollms_local.engines import engine_class
from lollms_local.errors import LocalModelError
from lollms_local.host import LocalBinding, edge
from lollms_local.media import encode_audio
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.speech import (
    Speech,
    SpeechLoadOptions,
    SpeechModel,
    SpeechOptions,
    check_text,
    nothing_spoken,
)
from lollms_local.runtime import Job, get_runtime

log = logging.getLogger(__name__)

BindingName = "LocalTTS"
TITLE = "Local text to speech (Piper, Bark)"
DESCRIPTION = "Speaks in this process, offline. Piper: real time on any CPU. Bark: expressive, wants a GPU. No server."
DESCRIBED_METHODS = ("generate_audio",)

#: settings that mean something to one model only
_OF_ONE_MODEL = ("voice", "speaker", "speaker_id")


class LocalTTS(LocalBinding[SpeechModel], LollmsTTSBinding):
    """The host's text-to-speech contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "tts"
    load_options: ClassVar[type[LoadOptions]] = SpeechLoadOptions
    call_options: ClassVar[type[SpeechOptions]] = SpeechOptions
    default_model: ClassVar[str] = "piper-en-us-joe-medium"

    @edge
    def generate_audio(self, text: str, voice: str | None = None, model: str | None = None, **kwargs: Any) -> bytes:
        """Speak a text.

        Args:
            text: any length; long texts are spoken sentence by sentence and joined.
            voice: a voice of the model, or a model that is a voice.
            model: catalogue id, repository or path; None = the configured one. May be a voice too.
            **kwargs: any field of `SpeechOptions` (`language`, `speed`, `seed`, `format` ...), `progress_callback`,
                `cancelled`.

        Returns:
            A WAV file, or what `format` says.
        """
        words = check_text(text)
        job, given = self._who(model, voice, kwargs)

        def use(engine: SpeechModel, options: SpeechOptions, control: Control) -> tuple[Speech, SpeechOptions]:
            return engine.speak(words, options, control), options

        speech, options = self.run(use, given, job=job)
        facts = {"model": job.spec.id, "voice": speech.voice}
        if speech.seed >= 0:
            facts["seed"] = str(speech.seed)
        return encode_audio(speech.audio, options.format, metadata=facts, normalise=options.normalise)

    @edge
    def stream_audio(
        self, text: str, voice: str | None = None, model: str | None = None, **kwargs: Any
    ) -> Iterator[bytes]:
        """Speak piece by piece: each item is a whole file of one piece, its pause included, ready to be played.

        Arguments as for `generate_audio`. What is wrong with them is said at once, before the first piece is asked for.
        The model stays leased until the iterator is exhausted or closed.
        """
        words = check_text(text)
        job, given = self._who(model, voice, kwargs)
        options: SpeechOptions = self.options(given, job.spec)
        lease = self._installing(job, lambda: get_runtime().lease(job))
        return self._pieces(lease, words, options, given)

    def _pieces(
        self, lease: AbstractContextManager[SpeechModel], words: str, options: SpeechOptions, given: Mapping[str, Any]
    ) -> Iterator[bytes]:
        spoken = False
        try:
            with self.control(given) as control, lease as engine:
                for piece in engine.stream(words, options, control):
                    spoken = True
                    yield encode_audio(piece.with_pause(), options.format, normalise=options.normalise)
            if not spoken:
                raise nothing_spoken()
        except LocalModelError as exc:
            self._note(exc)
            raise

    def list_voices(self, **kwargs: Any) -> list[str]:
        """Voices of the configured model, then models that are voices themselves; each may be given as `voice`."""
        names = [name for spec in self._speakers() for name in self._voices_of(spec)]
        return list(dict.fromkeys(names))

    # --- who speaks -------------------------------------------------------------------------------------------

    def spec(self, model: str | None = None) -> ModelSpec:
        """As for every binding; but a "model" may be a voice: the host's wizard offers voices as models."""
        name = _said(model) or _said(self.model_name)
        voice = name or _said(self.config.get("voice"))
        if not voice or voice in get_runtime().catalog or Path(voice).is_absolute():
            return super().spec(voice or None)
        return self._model_of_voice(voice) or super().spec(name or None)

    def options(self, given: Mapping[str, Any], spec: ModelSpec) -> Any:
        """As for every binding; but a configured voice goes with the configured model and with no other."""
        if self._is_configured(spec):
            return super().options(given, spec)
        config = {name: value for name, value in self.config.items() if name not in _OF_ONE_MODEL}
        return self.call_options.merge(given, config, spec.defaults)

    def _is_configured(self, spec: ModelSpec) -> bool:
        if not any(_said(self.config.get(name)) for name in _OF_ONE_MODEL):
            return True
        try:
            return self.spec() == spec
        except LocalModelError:
            return False  # the configured model does not exist; the call names another

    def _who(self, model: str | None, voice: str | None, kwargs: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
        """The model that speaks, and the call's options with the voice in them where one was named.

        A voice named without a model may be any model's; one named with a model is that model's to judge.
        """
        asked, wanted = _said(model), _said(voice)
        spec = self.spec(asked)
        if wanted and not asked and not self._has(spec, wanted):
            spec = self._model_of_voice(wanted) or spec
        name = asked or _said(self.model_name)
        if not wanted and name != spec.id and self._has(spec, name):
            wanted = name
        if wanted == spec.id and wanted not in self._voices_of(spec):
            wanted = ""  # a model named as a voice: its usual one
        return self._job(spec), {**kwargs, "voice": wanted}

    def _model_of_voice(self, voice: str) -> ModelSpec | None:
        return next((spec for spec in self._speakers() if self._has(spec, voice)), None)

    def _has(self, spec: ModelSpec, voice: str) -> bool:
        """Whether the voice is the model's; which speakers a voice has, the engine knows."""
        base = voice.partition("#")[0]
        return base == spec.id or not {voice, base}.isdisjoint(self._voices_of(spec))

    def _speakers(self) -> list[ModelSpec]:
        """Models by the likelihood that they are meant: the configured one, those on this disk, the others."""
        rows = sorted(get_runtime().models("tts", self._models_dir()), key=lambda row: not row[1])
        first = [spec for spec, _ in rows if spec.id == (self.model_name or self.default_model)]
        return first + [spec for spec, _ in rows if spec not in first]

    def _voices_of(self, spec: ModelSpec) -> list[str]:
        try:
            path = weights.locate(spec, self._models_dir())
        except LocalModelError:
            path = None  # not downloaded: what can be said without its files
        try:
            return list(engine_class(spec.engine).voices(spec, path))
        except LocalModelError as exc:
            log.debug("%s: no voices: %s", spec.id, exc)
            return []


def _said(name: Any) -> str:
    """A name, or "" for what callers pass instead of one."""
    text = str(name or "").strip()
    return "" if text in ("None", "null") else text


def _self_test() -> int:
    """Speak a sentence with the default voice, without the client."""
    try:
        sound = LocalTTS().generate_audio("The quick brown fox jumps over the lazy dog.")
    except LocalModelError as exc:
        print(exc)
        return 1
    Path("local_tts_self_test.wav").write_bytes(sound)
    print(f"local_tts_self_test.wav: {len(sound)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(_self_test())
