"""Speech to text for the LoLLMS host: recordings written down in this process by `lollms_local`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_stt_binding import LollmsSTTBinding

from lollms_local.engines import engine_class
from lollms_local.errors import MediaError
from lollms_local.host import LocalBinding, edge
from lollms_local.media import Audio, check_audio, decode_audio
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.transcription import (
    Transcriber,
    Transcript,
    TranscriptionLoadOptions,
    TranscriptionOptions,
    Turn,
    turns_by_pauses,
)

BindingName = "LocalSTT"
TITLE = "Local speech to text (Whisper)"
DESCRIPTION = (
    "Writes down speech in this process with faster-whisper, offline. Text, SRT, VTT or JSON; no server, no ffmpeg."
)
DESCRIBED_METHODS = ("transcribe_audio",)


class LocalSTT(LocalBinding[Transcriber], LollmsSTTBinding):
    """The host's speech-to-text contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "stt"
    load_options: ClassVar[type[LoadOptions]] = TranscriptionLoadOptions
    call_options: ClassVar[type[TranscriptionOptions]] = TranscriptionOptions
    default_model: ClassVar[str] = "whisper-tiny.en"

    @edge
    def transcribe_audio(
        self, audio_source: Any = None, model: str | None = None, audio_path: Any = None, **kwargs: Any
    ) -> str:
        """What is said in a recording.

        Args:
            audio_source: path, bytes of a file, open binary file or `lollms_local.media.Audio`; a film's sound too.
            model: catalogue id, repository or path; None = the configured one.
            audio_path: the name that hosts up to 1.8 use for `audio_source`.
            **kwargs: any field of `TranscriptionOptions`, `progress_callback`, `cancelled`.

        Returns:
            The text, or what the option `output` asks for: lines with times, SRT, VTT, JSON.
        """
        transcript, form = self._transcribed(_given(audio_source, audio_path), model, kwargs)
        return transcript.render(form)

    @edge
    def transcribe(self, audio: Any = None, model: str | None = None, **kwargs: Any) -> str:
        """`transcribe_audio` under the name that the host's personality tool uses."""
        source = _given(audio, kwargs.pop("audio_source", None), kwargs.pop("audio_path", None))
        transcript, form = self._transcribed(source, model, kwargs)
        return transcript.render(form)

    @edge
    def transcribe_detailed(
        self, audio_source: Any = None, model: str | None = None, audio_path: Any = None, **kwargs: Any
    ) -> Transcript:
        """As `transcribe_audio`, but all that is known: segments with times and probabilities, words, language."""
        return self._transcribed(_given(audio_source, audio_path), model, kwargs)[0]

    @edge
    def transcribe_audio_with_diarization(
        self,
        audio_source: Any = None,
        participants: Sequence[str] | None = None,
        voice_samples: Mapping[str, Any] | None = None,
        model: str | None = None,
        audio_path: Any = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Turns of speech: `[{"speaker", "start", "end", "text"}]`, times in seconds.

        Voices are not told apart: there is no speaker model here, and guessing would put words into people's mouths. So
        all turns, which end at pauses, belong to one speaker: the only participant, or "Speaker 1". With the option
        `speaker_per_channel` every channel of the recording is a speaker, named in the order of `participants`.

        Args:
            participants: names; with several channels, in the channels' order.
            voice_samples: not used, as above; the console says so.
        """
        source, names = _given(audio_source, audio_path), [str(name) for name in participants or ()]
        if voice_samples:
            self._say("Voice samples are not used: voices are not told apart here.")
        job = self._prepared(source, model)
        options = self.options(kwargs, job.spec)
        sounds: list[Any] = [source]
        if options.speaker_per_channel:
            sounds = _channels(decode_audio(source))
        elif len(names) != 1:
            names = []

        def use(engine: Transcriber, effective: TranscriptionOptions, control: Control) -> list[Turn]:
            turns: list[Turn] = []
            for number, sound in enumerate(sounds):
                speaker = names[number] if number < len(names) else f"Speaker {number + 1}"
                turns += turns_by_pauses(engine.transcribe(sound, effective, control).segments, speaker)
            return sorted(turns, key=lambda turn: turn.start_s)

        turns = self.run(use, kwargs, model=model)
        return [{"speaker": t.speaker, "start": t.start_s, "end": t.end_s, "text": t.text} for t in turns]

    # --- how --------------------------------------------------------------------------------------------------

    def _transcribed(self, source: Any, model: str | None, given: Mapping[str, Any]) -> tuple[Transcript, str]:
        self._prepared(source, model)

        def use(engine: Transcriber, options: TranscriptionOptions, control: Control) -> tuple[Transcript, str]:
            return engine.transcribe(source, options, control), options.output

        return self.run(use, given, model=model)

    def _prepared(self, source: Any, model: str | None) -> Any:
        """The job; a missing library or a bad recording is said before any model is loaded or evicted for it."""
        job = self.job(model)
        self._installing(job, lambda: engine_class(job.spec.engine))
        check_audio(source)
        return job


def _given(*sources: Any) -> Any:
    for source in sources:
        if source is not None:
            return source
    raise MediaError("No recording was given.", hint="Give a path or the bytes of an audio file.")


def _channels(audio: Audio) -> list[Audio]:
    return [Audio(audio.samples[i : i + 1], audio.sample_rate) for i in range(audio.channels)]


def _self_test() -> int:
    """Speak a sentence with the starter voice (or espeak-ng) and write it down again, without the client."""
    from lollms_local.demo_speech import spoken_sentence
    from lollms_local.errors import LocalModelError

    sentence = "The quick brown fox jumps over the lazy dog."
    try:
        recording = spoken_sentence(sentence)
        binding = LocalSTT()
        print(f"model: {binding.spec().id}\nsaid:  {sentence}\nheard: {binding.transcribe_audio(recording)}")
        print(binding.transcribe_audio(recording, output="srt"))
    except LocalModelError as exc:
        print(exc)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_self_test())
