"""Speech: what a text-to-speech engine is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from ..errors import UnsupportedRequest
from ..media import Audio
from ..options import Options, auto, choice
from .base import Control, LoadOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.float32]

__all__ = [
    "Speech",
    "SpeechLoadOptions",
    "SpeechModel",
    "SpeechOptions",
    "SpokenPiece",
    "base_language",
    "check_language",
    "check_text",
    "join_pieces",
    "nothing_spoken",
    "speaker_number",
]


class SpeechLoadOptions(LoadOptions):
    """What shapes a loaded speech model."""

    offload: Literal["auto", "none", "parts"] = choice(
        "auto",
        "Bark on a small GPU: auto | none | parts. parts = only the part at work is on the GPU; auto = if it must be.",
    )


class SpeechOptions(Options):
    """One call's wishes."""

    aliases: ClassVar[Mapping[str, str]] = {
        "text_temperature": "temperature",
        "text_temp": "temperature",
        "waveform_temp": "waveform_temperature",
        "noise_w": "noise_w_scale",
        "speaker_id": "speaker",
        "audio_format": "format",
        "response_format": "format",
        "lang": "language",
    }

    voice: str = auto(
        "", "Voice: a Piper or VITS model, model#speaker, or a Bark preset like v2/en_speaker_6; empty = default."
    )
    speaker: str = auto("", "Speaker of a voice that has several: its name or number; empty = the first.")
    language: str = auto("", "Language of the text, ISO 639-1 (en, de, ...); empty = that of the voice.")
    speed: float = choice(
        1.0, "Rate of speech; 1 = as the voice was recorded, 2 = twice as fast. Not for Bark.", ge=0.25, le=4
    )
    length_scale: float = auto(
        0.0, "Piper, VITS: length of sounds, divides by speed; 0 = the voice's own.", ge=0, le=10
    )
    noise_scale: float = auto(-1.0, "Piper, VITS: variation of the sound; 0 = none, -1 = the voice's own.", ge=-1, le=2)
    noise_w_scale: float = auto(
        -1.0, "Piper, VITS: variation of the rhythm; 0 = none, -1 = the voice's own.", ge=-1, le=2
    )
    temperature: float = auto(-1.0, "Bark: variation of what is said; -1 = the model's own (0.7).", ge=-1, le=3)
    waveform_temperature: float = auto(
        -1.0, "Bark: variation of the voice's sound; -1 = the model's own (0.7).", ge=-1, le=3
    )
    min_eos_p: float = auto(
        -1.0, "Bark: end a piece once its end is this probable, 0 to 1; -1 = the model's own.", ge=-1, le=1
    )
    seed: int = choice(-1, "Same seed, same speech; -1 = another each time.", ge=-1, le=2**32 - 1)
    sentence_pause_s: float = choice(0.2, "Silence after a sentence, in seconds.", ge=0, le=10)
    paragraph_pause_s: float = choice(0.5, "Silence after a paragraph, in seconds.", ge=0, le=30)
    format: Literal["wav", "flac", "mp3", "ogg", "opus"] = choice("wav", "File format: wav | flac | mp3 | ogg | opus.")
    normalise: bool = choice(False, "Scale the loudest peak to 0.97.")

    def pause_s(self, ends: str) -> float:
        """Silence after a piece that ends with a "clause", a "sentence" or a "paragraph"."""
        return {"sentence": self.sentence_pause_s, "paragraph": self.paragraph_pause_s}.get(ends, 0.0)


@dataclass(frozen=True)
class SpokenPiece:
    """One piece of speech, ready to be played.

    Attributes:
        audio: mono.
        text: what is said in it.
        pause_s: silence that belongs after it if another piece follows.
    """

    audio: Audio
    text: str
    pause_s: float = 0.0

    def with_pause(self) -> Audio:
        """The sound with its silence after it, for a player that plays pieces one after the other."""
        import numpy as np

        silence = np.zeros((self.audio.channels, round(self.pause_s * self.audio.sample_rate)), np.float32)
        return Audio(np.concatenate([self.audio.samples, silence], axis=1), self.audio.sample_rate)


@dataclass(frozen=True)
class Speech:
    """A whole text, spoken.

    Attributes:
        audio: mono.
        voice: who spoke.
        seed: what the variation was drawn from.
        pieces: the texts, in order.
    """

    audio: Audio
    voice: str
    seed: int
    pieces: tuple[str, ...]


class SpeechModel(Protocol):
    """What every text-to-speech engine offers."""

    def stream(self, text: str, options: SpeechOptions, control: Control) -> Iterator[SpokenPiece]:
        """Speak piece by piece; each piece is complete, and the work for the next starts when it is asked for.

        Raises:
            UnsupportedRequest: empty text, unknown voice or speaker, a language that the model does not speak.
            Cancelled, GenerationError, InsufficientMemory.
        """
        ...

    def speak(self, text: str, options: SpeechOptions, control: Control) -> Speech:
        """The whole text, joined with natural pauses. Raises as `stream` does."""
        ...


def check_text(text: str) -> str:
    """The text without surrounding white space.

    Raises:
        UnsupportedRequest: there is nothing in it.
    """
    stripped = text.strip() if isinstance(text, str) else ""
    if not stripped:
        raise UnsupportedRequest("There is no text to speak.", hint="Give at least one word.")
    return stripped


def check_language(voice: str, wanted: str, spoken: str) -> None:
    """Raise UnsupportedRequest if a voice of one language is asked for another; "" = not known, or not said."""
    if wanted and spoken and base_language(wanted) != base_language(spoken):
        raise UnsupportedRequest(
            f"The voice {voice} speaks {spoken}, not {wanted}.",
            hint='Choose a voice of that language: "lollms-local models list --modality tts" shows all.',
        )


def speaker_number(options: SpeechOptions, voice: str, names: Mapping[str, int], count: int) -> int | None:
    """The speaker that is asked for by `speaker`, or by `voice` as "voice#speaker"; None = not said.

    Args:
        voice: the only voice that the model has.
        names: numbers of speakers by name, if they have names.
        count: how many speakers there are.

    Raises:
        UnsupportedRequest: another voice is asked for, or a speaker that it does not have.
    """
    asked, _, named = options.voice.partition("#")
    if asked and asked != voice:
        raise UnsupportedRequest(
            f"The voice {options.voice!r} is not known to {voice}.", hint=f"Use {voice!r}, or leave it empty."
        )
    wanted = (named or options.speaker).strip()
    if not wanted:
        return None
    if wanted in names:
        return int(names[wanted])
    if wanted.isdecimal() and int(wanted) < max(1, count):
        return int(wanted)
    known = ", ".join(list(names)[:8]) or f"0 to {max(0, count - 1)}"
    raise UnsupportedRequest(f"The voice {voice} has no speaker {wanted!r}.", hint=f"It has: {known}.")


def nothing_spoken() -> UnsupportedRequest:
    """What is raised for a text in which no piece has a sound, such as a row of dots."""
    return UnsupportedRequest(
        "There is nothing in this text that the voice can speak.", hint="Give words in the voice's language."
    )


def base_language(code: str) -> str:
    """ISO 639-1 code of "en", "en-US", "en_us" or "EN"."""
    return code.strip().lower().replace("_", "-").partition("-")[0]


def join_pieces(pieces: Iterable[SpokenPiece], voice: str, seed: int) -> Speech:
    """Pieces in order with their pauses between them.

    Each piece is faded over its outermost 5 ms where it meets silence, so that nothing clicks.
    """
    import numpy as np

    found = list(pieces)
    if not found:
        raise nothing_spoken()
    rate = found[0].audio.sample_rate
    parts = []
    for number, piece in enumerate(found):
        samples = piece.audio.samples
        if len(found) > 1:
            samples = _faded(samples, rate, head=number > 0, tail=number < len(found) - 1)
        parts.append(samples)
        if number < len(found) - 1 and piece.pause_s:
            parts.append(np.zeros((1, round(piece.pause_s * rate)), np.float32))
    return Speech(Audio(np.concatenate(parts, axis=1), rate), voice, seed, tuple(p.text for p in found))


def _faded(samples: Samples, rate: int, *, head: bool, tail: bool) -> Samples:
    """A copy whose ends rise from and fall to zero."""
    import numpy as np

    samples = samples.copy()
    length = min(rate // 200, samples.shape[1] // 2)
    ramp = np.linspace(0.0, 1.0, length, endpoint=False, dtype=np.float32)
    if head and length:
        samples[:, :length] *= ramp
    if tail and length:
        samples[:, -length:] *= ramp[::-1]
    return samples
