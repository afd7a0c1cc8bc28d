"""Lines out of a batch's segments: these are up to thirty seconds long, too much to read as a subtitle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..sentences import split_sentences

__all__ = ["lines_of"]

#: a line ends before a pause of so many seconds
PAUSE_S = 1.0
#: what can be read comfortably, by the usual rules of subtitling: two rows of 42 characters, seven seconds
MAX_LINE_CHARS = 84
MAX_LINE_S = 7.0
_CLAUSE_ENDS = (",", ";", ":", "，", "、", "；", "：")


def lines_of(segment: Any, *, keep_words: bool) -> Iterator[Any]:
    """One of faster-whisper's segments, which has words, as several: by sentence, pause and length. No word is lost."""
    words = list(segment.words or ())
    if not words:
        yield segment
        return
    for line in _fitting(_at_pauses(_sentences(words))):
        yield replace(
            segment,
            start=line[0].start,
            end=line[-1].end,
            text=_text(line),
            words=line if keep_words else None,
        )


def _text(words: Sequence[Any]) -> str:
    return "".join(word.word for word in words)


def _sentences(words: list[Any]) -> Iterator[list[Any]]:
    """Cut where the text's sentences end. Letters are counted without spaces, which the sentences have lost."""
    ends = itertools.accumulate(len("".join(s.text.split())) for s in split_sentences(_text(words)))
    line: list[Any] = []
    read, end = 0, next(ends, 0)
    for word in words:
        line.append(word)
        read += len("".join(word.word.split()))
        if read >= end:
            yield line
            line = []
            end = next((e for e in ends if e > read), 0) or read + 1
    if line:
        yield line


def _at_pauses(lines: Iterator[list[Any]]) -> Iterator[list[Any]]:
    for line in lines:
        start = 0
        for at in range(1, len(line)):
            if line[at].start - line[at - 1].end >= PAUSE_S:
                yield line[start:at]
                start = at
        yield line[start:]


def _fitting(lines: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """Lines that are too long cut in two near their middle, behind a comma if there is one."""
    for line in lines:
        fits = len(_text(line).strip()) <= MAX_LINE_CHARS and line[-1].end - line[0].start <= MAX_LINE_S
        if fits or len(line) < 2:
            yield line
            continue
        middle = len(line) / 2
        places = range(1, len(line))
        commas = [at for at in places if line[at - 1].word.rstrip().endswith(_CLAUSE_ENDS)]
        near = [at for at in commas if middle / 2 <= at <= middle * 1.5]
        at = min(near or places, key=lambda place: abs(place - middle))
        yield from _fitting(iter((line[:at], line[at:])))
