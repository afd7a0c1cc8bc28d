"""Subtitles: SubRip (.srt) and WebVTT (.vtt) text from timed lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["Cue", "srt_text", "vtt_text"]


class Cue(Protocol):
    """A line with its times; any object with these three will do."""

    @property
    def start_s(self) -> float:
        """Seconds from the beginning."""
        ...

    @property
    def end_s(self) -> float:
        """Seconds from the beginning."""
        ...

    @property
    def text(self) -> str:
        """What is shown."""
        ...


def timestamp(seconds: float, decimal_mark: str) -> str:
    """ "01:02:03,456": hours always, milliseconds rounded; negative times become zero."""
    milliseconds = max(0, round(seconds * 1000))
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, milliseconds = divmod(rest, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{decimal_mark}{milliseconds:03d}"


def srt_text(cues: Iterable[Cue]) -> str:
    """A SubRip file's text; lines without text are left out."""
    blocks = [
        f"{number}\n{timestamp(cue.start_s, ',')} --> {timestamp(cue.end_s, ',')}\n{_one_block(cue.text)}\n"
        for number, cue in enumerate((c for c in cues if c.text.strip()), 1)
    ]
    return "\n".join(blocks)


def vtt_text(cues: Iterable[Cue]) -> str:
    """A WebVTT file's text; "&", "<" and ">" are escaped as the format asks."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        if cue.text.strip():
            text = _one_block(cue.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            blocks.append(f"{timestamp(cue.start_s, '.')} --> {timestamp(cue.end_s, '.')}\n{text}\n")
    return "\n".join(blocks)


def _one_block(text: str) -> str:
    """Without empty lines, which would end the cue in both formats."""
    return "\n".join(line.strip() for line in text.strip().splitlines() if line.strip())
