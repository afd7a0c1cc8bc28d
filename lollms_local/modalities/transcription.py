"""Transcription: what a speech-to-text engine is asked for and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Protocol, get_args

from ..errors import UnsupportedRequest
from ..media import AudioSource, srt_text, vtt_text
from ..options import Options, auto, choice
from .base import Control, LoadOptions

__all__ = [
    "Segment",
    "Transcriber",
    "Transcript",
    "TranscriptFormat",
    "TranscriptionLoadOptions",
    "TranscriptionOptions",
    "Turn",
    "Word",
    "turns_by_pauses",
]

TranscriptFormat = Literal["text", "segments", "srt", "vtt", "json"]


class TranscriptionLoadOptions(LoadOptions):
    """What shapes a loaded speech-to-text model."""

    #: a batch that is configured for every call is one to keep memory for
    aliases: ClassVar[Mapping[str, str]] = {"batch_size": "max_batch_size"}

    compute_type: Literal["auto", "int8", "int8_float16", "int8_bfloat16", "float16", "bfloat16", "float32"] = choice(
        "auto", "Arithmetic: auto | int8 | int8_float16 | int8_bfloat16 | float16 | bfloat16 | float32. auto = best."
    )
    max_batch_size: int = auto(
        0, "Largest batch_size that memory is kept for, 1 to 64; 0 = batch_size if set, else 8 on a GPU, 1 on a CPU.",
        ge=0, le=64,
    )  # fmt: skip


class TranscriptionOptions(Options):
    """One call's wishes."""

    aliases: ClassVar[Mapping[str, str]] = {
        "output_format": "output",
        "response_format": "output",
        "format": "output",
        "prompt": "initial_prompt",
        "vad": "vad_filter",
        "lang": "language",
    }

    language: str = auto("", "Language spoken: a code (en, fr, ...) or English name; empty = detect it.")
    task: Literal["transcribe", "translate"] = choice(
        "transcribe", "transcribe | translate. translate = into English (not with English-only models)."
    )
    output: TranscriptFormat = choice("text", "Form of the answer: text | segments | srt | vtt | json.")
    beam_size: int = choice(5, "Hypotheses followed at a time, 1 to 20; 1 = fastest, 0 = 5.", ge=0, le=20)
    temperature: float = auto(
        -1.0, "Sampling temperature, 0 to 1; -1 = start at 0 and rise only where decoding fails.", ge=-1, le=1
    )
    initial_prompt: str = auto("", "Text that sets spelling and style, as if it had been said before the recording.")
    hotwords: str = auto("", "Names and terms to listen for, separated by spaces or commas.")
    vad_filter: bool = choice(True, "Leave out stretches without speech, where Whisper tends to invent words.")
    vad_threshold: float = choice(0.5, "What counts as speech: its probability, 0.05 to 0.95.", ge=0.05, le=0.95)
    word_timestamps: bool = choice(False, "Time and probability of every word too.")
    batch_size: int = auto(
        0, "Stretches of speech decoded at once, 1 to max_batch_size; 0 = that many from a minute on, 1 = no batches.",
        ge=0, le=64,
    )  # fmt: skip
    condition_on_previous_text: bool = choice(
        True, "Let the text so far guide what follows (not in batches). Off = no runaway repetitions."
    )
    speaker_per_channel: bool = choice(
        False, "Diarization: every channel of the recording is one speaker (calls, interviews with two microphones)."
    )


@dataclass(frozen=True)
class Word:
    """One word.

    Attributes:
        start_s, end_s: seconds from the beginning of the recording.
        text: as the model gives it, without the space before it.
        probability: 0..1.
    """

    start_s: float
    end_s: float
    text: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A line of a transcript.

    Attributes:
        start_s, end_s: seconds from the beginning of the recording.
        text: what was said, stripped.
        words: empty unless asked for.
        avg_logprob: mean log probability of the tokens; near 0 = sure.
        no_speech_prob: 0..1, the model's doubt that anything was said.
        compression_ratio: of the text; above about 2.4 it repeats itself.
        temperature: at which it was decoded.
    """

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    compression_ratio: float = 0.0
    temperature: float = 0.0


@dataclass(frozen=True)
class Transcript:
    """What was said.

    Attributes:
        text: all of it.
        segments: its lines in order.
        language: ISO 639-1 code, given or detected; "" if nothing was said.
        language_probability: 1 if it was given.
        duration_s: length of the recording.
        model: id of the model.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    language_probability: float
    duration_s: float
    model: str = ""

    def render(self, format: str = "text") -> str:
        """The transcript as "text", "segments" (a line each, with times), "srt", "vtt" or "json".

        Raises:
            UnsupportedRequest: there is no such form.
        """
        if format == "text":
            return self.text
        if format == "segments":
            return "\n".join(f"[{s.start_s:.2f} -> {s.end_s:.2f}] {s.text}" for s in self.segments)
        if format == "srt":
            return srt_text(self.segments)
        if format == "vtt":
            return vtt_text(self.segments)
        if format == "json":
            return json.dumps(asdict(self), ensure_ascii=False, indent=2)
        raise UnsupportedRequest(
            f"There is no transcript format {format!r}.", hint=f"Choose {', '.join(get_args(TranscriptFormat))}."
        )


@dataclass(frozen=True)
class Turn:
    """A stretch of speech of one speaker: name, seconds from the beginning, text."""

    speaker: str
    start_s: float
    end_s: float
    text: str


def turns_by_pauses(segments: Sequence[Segment], speaker: str, pause_s: float = 1.0) -> list[Turn]:
    """Join the lines of one speaker into turns; a silence longer than `pause_s` seconds begins a new one."""
    turns: list[Turn] = []
    for segment in segments:
        if turns and segment.start_s - turns[-1].end_s <= pause_s:
            last = turns[-1]
            turns[-1] = Turn(speaker, last.start_s, segment.end_s, f"{last.text} {segment.text}".strip())
        else:
            turns.append(Turn(speaker, segment.start_s, segment.end_s, segment.text))
    return turns


class Transcriber(Protocol):
    """A loaded speech-to-text model."""

    def transcribe(self, audio: AudioSource, options: TranscriptionOptions, control: Control) -> Transcript:
        """Write down what is said.

        Args:
            audio: a path, bytes, an open binary file, or an `Audio` of any rate; its channels are mixed.
            options: effective options.
            control: told seconds of audio; polled at every segment.

        Raises:
            MediaError: the audio cannot be read. UnsupportedRequest: the model cannot do that. GenerationError:
                decoding failed. Cancelled.
        """
        ...
