"""Text to speech for the LoLLMS host: Piper, Bark and VITS voices in this process, by `lollms_local`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_tts_binding import LollmsTTSBinding

from lollms_local.catalog import ModelSpec
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
from lollms_local.voices import DEFAULT_SPEAKER, Voices

BindingName = "LocalTTS"
TITLE = "Local text to speech (Piper, Bark, VITS)"
DESCRIPTION = (
    "Speaks in this process, offline. Piper: real time on any CPU. Bark: expressive, wants a GPU. VITS (MMS): many "
    "languages. No server."
)
DESCRIBED_METHODS = ("generate_audio",)

#: settings that mean something to one model only
_OF_ONE_MODEL = ("voice", "speaker", "speaker_id")


class LocalTTS(LocalBinding[SpeechModel], LollmsTTSBinding):
    """The host's text-to-speech contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "tts"
    load_options: ClassVar[type[LoadOptions]] = SpeechLoadOptions
    call_options: ClassVar[type[SpeechOptions]] = SpeechOptions
    default_model: ClassVar[str] = DEFAULT_SPEAKER

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
        lease = self._installing(job, lambda: get_runtime().lease(job, options.shape))
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
        return self._voices().all()

    # --- who speaks -------------------------------------------------------------------------------------------

    def spec(self, model: str | None = None) -> ModelSpec:
        """As for every binding; but a "model" may be a voice: the host's wizard offers voices as models."""
        name, voice = _said(model) or _said(self.model_name), _said(self.config.get("voice"))
        if name:
            return self._voices().model(name)
        return (self._voices().owner(voice) if voice else None) or super().spec()

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
        voices = self._voices()
        spec, wanted = voices.settle(self.spec(asked), wanted, fixed=bool(asked))
        name = asked or _said(self.model_name)
        if not _said(voice) and name != spec.id and voices.has(spec, name):
            wanted = name
        return self._job(spec), {**kwargs, "voice": wanted}

    def _voices(self) -> Voices:
        return Voices(get_runtime(), self._models_dir(), _said(self.model_name) or self.default_model)


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
