"""From the bytes of tokens to what the caller sees: whole characters, no stop texts, thoughts apart from the answer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

from ...modalities.chat import Piece

__all__ = ["THOUGHTS", "AnswerStream", "opened_thought"]

#: (opening, closing) of a thought, as the known families write it
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
_OPENINGS = tuple(open_ for open_, _ in THOUGHTS)
#: markup between the end of a thought and the answer
_BETWEEN = ("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>")

Kind = Literal["answer", "thought"]


def opened_thought(prompt: str) -> str:
    """The closing mark, if a prompt ends within a thought (some templates open it themselves); else ""."""
    end = prompt.rstrip()
    return next((close for open_, close in THOUGHTS if end.endswith(open_)), "")


class AnswerStream:
    """Takes bytes, gives pieces.

    Text is held back only as long as it may be the beginning of a mark: a stop text or the border of a thought.

    Args:
        stop: texts that end the answer.
        closing: the mark that ends the thought in which the prompt left off; "" = none.
        split_thoughts: False leaves thoughts where they are (raw completion).
        calls: marks that begin function calls; from there on nothing is given. "" = from the first character.

    Attributes:
        stopped: a stop text has come; everything after it is dropped.
        hidden: function calls, with their marks.
        answer, thoughts: all that was given so far.
    """

    def __init__(
        self, stop: Sequence[str] = (), closing: str = "", *, split_thoughts: bool = True, calls: Sequence[str] = ()
    ) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(s for s in stop if s)
        self._closing = closing
        self._split = split_thoughts
        self._calls = tuple(c for c in calls if c)
        self._hidden = "" in calls
        self._held = ""
        self.stopped = False
        self.answer = ""
        self.thoughts = ""
        self.hidden = ""

    def feed(self, data: bytes) -> list[Piece]:
        """Bytes of a token; the pieces that are complete now."""
        if self.stopped:
            return []
        self._held += self._decoder.decode(data)
        return self._drain(final=False)

    def finish(self) -> list[Piece]:
        """The end of generation: what was held back. Half a character at the end is dropped."""
        if self.stopped:
            return []
        return self._drain(final=True)

    def _drain(self, *, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while True:
            marks = self._marks()
            found = _first(self._held, marks)
            if found is None:
                keep = 0 if final else _possible_start(self._held, marks)
                self._give(pieces, self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                return pieces
            at, mark = found
            self._give(pieces, self._held[:at])
            self._held = self._held[at + len(mark) :]
            if self._closing:
                self._closing = ""
            elif mark in self._calls:
                self._hidden = True
                self.hidden += mark
            elif mark in self._stop:
                self.stopped, self._held = True, ""
                return pieces
            else:
                self._closing = dict(THOUGHTS).get(mark, "")

    def _marks(self) -> tuple[str, ...]:
        """Texts that would change something now. A stop text within a thought is part of the thought."""
        if self._closing:
            return (self._closing,)
        if self._hidden:
            return self._stop
        return (*self._stop, *self._calls, *((*_OPENINGS, *_BETWEEN) if self._split else ()))

    def _give(self, pieces: list[Piece], text: str) -> None:
        kind: Kind = "thought" if self._closing else "answer"
        if self._hidden and not self._closing:
            self.hidden += text
            return
        if kind == "thought":
            if not self.thoughts:
                text = text.lstrip("\n")
            self.thoughts += text
        else:
            if self.thoughts and not self.answer:
                text = text.lstrip("\n")
            self.answer += text
        if text:
            pieces.append(Piece(kind, text))


def _first(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """The earliest mark in a text."""
    found = [(at, -len(m), m) for m in marks if (at := text.find(m)) >= 0]
    if not found:
        return None
    at, _, mark = min(found)
    return at, mark


def _possible_start(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of the text that some mark begins with."""
    longest = max((len(m) for m in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(m.startswith(text[-length:]) for m in marks):
            return length
    return 0
