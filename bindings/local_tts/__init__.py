"""Text to speech for the LoLLMS host: Piper and Bark voices in this process, by `lollms_local`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_tts_binding import LollmsTTSBinding

from lollms_local import weights
from lollms_local.catalog import ModelSpec
from lollms_local.engines import engine_class
from lollms_local.errors import LocalModelError, ModelNotFound
from lollms_local.host import LocalBinding, edge
from lollms_local.media import encode_audio
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.speech import (
    Speech,
    SpeechLoadOptions,
    SpeechModel,
    SpeechOptions,
    check_text,
)
from lollms_local.runtime import get_runtime

BindingName = "LocalTTS"
TITLE = "Local text to speech (Piper, Bark)"
DESCRIPTION = "Speaks in this process, offline. Piper: real time on any CPU. Bark: expressive, wants a GPU. No server."
DESCRIBED_METHODS = ("generate_audio",)


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
        name, given = self._who(model, voice, kwargs)
        self._installed(name)

        def use(engine: SpeechModel, options: SpeechOptions, control: Control) -> tuple[Speech, SpeechOptions]:
            return engine.speak(words, options, control), options

        speech, options = self.run(use, given, model=name)
        facts = {"voice": speech.voice, "seed": str(speech.seed)}
        return encode_audio(speech.audio, options.format, metadata=facts, normalise=options.normalise)

    def stream_audio(
        self, text: str, voice: str | None = None, model: str | None = None, **kwargs: Any
    ) -> Iterator[bytes]:
        """Speak piece by piece: each item is a whole file of one piece, its pause included, ready to be played.

        The model stays leased until the iterator is exhausted or closed.
        """
        words = check_text(text)
        name, given = self._who(model, voice, kwargs)
        job = self._installed(name)
        options: SpeechOptions = self.options(given, job.spec)
        with self.control(given) as control, get_runtime().lease(job) as engine:
            for piece in engine.stream(words, options, control):
                yield encode_audio(piece.with_pause(), options.format, normalise=options.normalise)

    def list_voices(self, **kwargs: Any) -> list[str]:
        """Voices of the configured model, then models that are voices themselves; each may be given as `voice`."""
        names = [name for spec in self._speakers() for name in self._voices_of(spec)]
        return list(dict.fromkeys(names))

    # --- who speaks -------------------------------------------------------------------------------------------

    def spec(self, model: str | None = None) -> ModelSpec:
        """As for every binding; but a configured "model" may be a voice (the host's wizard offers voices as models)."""
        try:
            return super().spec(model)
        except ModelNotFound:
            found = self._model_of_voice(str(model or self.model_name))
            if found is None:
                raise
            return found

    def _who(
        self, model: str | None, voice: str | None, kwargs: Mapping[str, Any]
    ) -> tuple[str | None, dict[str, Any]]:
        """Which model, and the call's options with the voice in it where the voice is not a model by itself."""
        given = dict(kwargs)
        wanted, _, speaker = (str(voice).strip() if voice not in (None, "", "None") else "").partition("#")
        if wanted and not model and wanted in get_runtime().catalog:
            if speaker:
                given["speaker"] = speaker
            return wanted, given
        asked = model or self.model_name
        if wanted:
            given["voice"] = str(voice).strip()
        elif asked and asked not in get_runtime().catalog and self._model_of_voice(str(asked)) is not None:
            given.setdefault("voice", str(asked))
        return model, given

    def _model_of_voice(self, voice: str) -> ModelSpec | None:
        return next((spec for spec in self._speakers() if voice in self._voices_of(spec)), None)

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
            self._note(exc, quiet=True)
            return []

    def _installed(self, model: str | None) -> Any:
        """The job; a missing library is said (or installed) before anything is loaded."""
        job = self.job(model)
        self._installing(job, lambda: engine_class(job.spec.engine))
        return job


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
