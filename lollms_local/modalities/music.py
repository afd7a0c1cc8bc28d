"""Music: what a text-to-music engine is asked for and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from ..media import Audio
from ..options import Options, auto, choice
from .base import Control, LoadOptions

__all__ = ["Music", "MusicLoadOptions", "MusicModel", "MusicOptions", "MusicRequest"]


class MusicLoadOptions(LoadOptions):
    """What shapes a loaded music model."""


class MusicOptions(Options):
    """One call's wishes."""

    aliases: ClassVar[Mapping[str, str]] = {
        "duration_s": "duration",
        "length": "duration",
        "cfg": "guidance_scale",
        "cfg_coef": "guidance_scale",
        "audio_format": "format",
        "response_format": "format",
    }

    duration: float = choice(
        10.0, "Length of the music in seconds, up to 600; beyond 30 it is continued in parts.", ge=0.1, le=600
    )
    guidance_scale: float = auto(
        -1.0, "How strictly to follow the text, 1 to 10; 1 = off, -1 = the model's own (3).", ge=-1, le=20
    )
    temperature: float = auto(-1.0, "Variation; 0 = always the likeliest, -1 = the model's own (1.0).", ge=-1, le=3)
    top_k: int = auto(-1, "Choose among the k likeliest sounds; 0 = all, -1 = the model's own (250).", ge=-1, le=2048)
    top_p: float = auto(0.0, "Choose among the likeliest sounds that make up this probability; 0 = off.", ge=0, le=1)
    seed: int = choice(-1, "Same seed, same music; -1 = another each time.", ge=-1, le=2**32 - 1)
    overlap_s: float = choice(
        10.0, "Seconds of the music so far that a continued part listens to, 1 to 25.", ge=1, le=25
    )
    include_source: bool = choice(
        True, "Continuing a given sound: true = give sound and continuation, false = only what is new."
    )
    ignore_lyrics: bool = choice(False, "Lyrics for a model that cannot sing: true = make the music without them.")
    format: Literal["wav", "flac", "mp3", "ogg", "opus"] = choice("wav", "File format: wav | flac | mp3 | ogg | opus.")
    normalise: bool = choice(False, "Scale the loudest peak to 0.97.")

    @property
    def shape(self) -> str:
        """Seconds in fives, up to the window's thirty: what is longer is made in parts."""
        return f"{5 * math.ceil(min(self.duration, 30) / 5)}s"


@dataclass(frozen=True)
class MusicRequest:
    """What to play.

    Attributes:
        prompts: descriptions, in order; each rules an equal share of the time.
        melody: a sound whose melody is to be followed, or None.
        source: a sound to be continued, or None.
    """

    prompts: Sequence[str]
    melody: Audio | None = None
    source: Audio | None = None


@dataclass(frozen=True)
class Music:
    """Music, made.

    Attributes:
        audio: mono or stereo.
        seed: what the variation was drawn from.
    """

    audio: Audio
    seed: int


class MusicModel(Protocol):
    """What every text-to-music engine offers."""

    def compose(self, request: MusicRequest, options: MusicOptions, control: Control) -> Music:
        """Make music.

        Raises:
            UnsupportedRequest: no prompt, or a melody for a model that follows none.
            Cancelled, GenerationError, InsufficientMemory.
        """
        ...
