"""Lines of a batch: whole sentences where they are short, no word lost, nothing too long to read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from faster_whisper.transcribe import Segment, Word

from lollms_local.engines._whisper_lines import MAX_LINE_CHARS, MAX_LINE_S, lines_of


def said(words: Sequence[str], each_s: float = 0.3, pauses: dict[int, float] | None = None) -> Segment:
    """A segment of words of equal length; `pauses` are seconds before the words of those numbers."""
    timed, now = [], 0.0
    for number, word in enumerate(words):
        now += (pauses or {}).get(number, 0.0)
        timed.append(Word(start=now, end=now + each_s, word=word, probability=0.9))
        now += each_s
    return Segment(
        id=1, seek=0, start=0.0, end=now, text="".join(words), tokens=[], avg_logprob=-0.2, compression_ratio=1.0,
        no_speech_prob=0.0, words=timed, temperature=0.0,
    )  # fmt: skip


def english(text: str) -> list[str]:
    return [f" {word}" for word in text.split()]


def texts(segment: Segment) -> list[str]:
    return [line.text.strip() for line in lines_of(segment, keep_words=False)]


def test_every_sentence_is_a_line_and_full_stops_within_one_end_none() -> None:
    found = texts(said(english("Dr. Smith paid 3.50 dollars. Was it much? No! He came back.")))
    assert found == ["Dr. Smith paid 3.50 dollars.", "Was it much?", "No!", "He came back."]


def test_a_pause_ends_a_line() -> None:
    assert texts(said(english("one two three four"), pauses={2: 1.5})) == ["one two", "three four"]
    assert texts(said(english("one two three four"), pauses={2: 0.5})) == ["one two three four"]


def test_a_long_sentence_is_cut_behind_a_comma_near_its_middle() -> None:
    first = "When the last of the boats had come in over the bar,"
    second = "the women went down to the harbour and counted the lamps."
    assert texts(said(english(f"{first} {second}"), each_s=0.2)) == [first, second]


@pytest.mark.parametrize("each_s", [0.05, 0.4, 3.0])
def test_no_word_is_lost_and_no_line_is_too_long(each_s: float) -> None:
    words = english("and then it went on " * 40)
    lines = list(lines_of(said(words, each_s), keep_words=True))
    assert [w.word for line in lines for w in line.words] == words
    assert all(len(line.text.strip()) <= MAX_LINE_CHARS and line.end - line.start <= MAX_LINE_S for line in lines)
    assert [line.start for line in lines] == [line.words[0].start for line in lines]


def test_a_language_without_spaces_keeps_none() -> None:
    assert texts(said([*"今日は晴れです。", *"明日は雨です。"])) == ["今日は晴れです。", "明日は雨です。"]


def test_a_segment_without_words_stays_as_it_is() -> None:
    segment = said([])
    assert list(lines_of(segment, keep_words=False)) == [segment]
