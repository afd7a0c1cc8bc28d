"""Cutting text into pieces that a speech model can speak, at the places where a reader would pause."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Piece", "split_sentences", "split_text"]

#: words that end in a full stop without ending a sentence
_ABBREVIATION_LIST = """
    mr mrs ms dr prof st sr jr vs etc fig nos vol pp ed eds approx dept est inc ltd co corp gen col lt sgt capt rev hon
    jan feb mar apr jun jul aug sep sept oct nov dec mt ave blvd ca cf al z.b d.h bzw usw evtl ggf nr str bspw
    e.g i.e a.m p.m u.s u.k u.s.a ph.d mme mlle
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_LIST.split())
#: stage directions, "[laughs]", and sung lines between notes, "♪ la la ♪": never cut inside
_WHOLE = re.compile(r"\[[^\[\]\n]{1,60}\]|♪[^♪\n]{1,400}♪")
_END = re.compile(r"(?:[.!?…]+|[。！？]+)[\"'”’»)\]]*")
_CLAUSE = re.compile(r"(?<=[,;:，、；：])\s*|\s+[-–—]\s+")
_WIDE_END = "。！？"
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Piece:
    """Words to be spoken in one go.

    Attributes:
        text: not empty, without line breaks.
        ends: what comes after it: "clause" (the sentence goes on), "sentence" or "paragraph".
    """

    text: str
    ends: str = "sentence"


def split_sentences(text: str) -> list[Piece]:
    """The sentences of a text, in order; nothing but white space is lost.

    Full stops in numbers, initials and common abbreviations do not end a sentence; blank lines end a paragraph.
    """
    pieces: list[Piece] = []
    for paragraph in _PARAGRAPH.split(text):
        sentences = _sentences(" ".join(paragraph.split()))
        pieces += [Piece(s) for s in sentences[:-1]]
        pieces += [Piece(s, "paragraph") for s in sentences[-1:]]
    return pieces


def _sentences(paragraph: str) -> list[str]:
    kept = [m.span() for m in _WHOLE.finditer(paragraph)]
    found, start = [], 0
    for match in _END.finditer(paragraph):
        end = match.end()
        inside = any(a <= match.start() < b - 1 for a, b in kept)
        if inside or end >= len(paragraph) or not _ends_sentence(paragraph, start, match):
            continue
        found.append(paragraph[start:end].strip())
        start = end
    found.append(paragraph[start:].strip())
    return [s for s in found if s]


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the marks at `match` end the sentence that began at `start`."""
    marks, rest = match.group(), text[match.end() :]
    if marks[0] in _WIDE_END:
        return True
    if not rest[:1].isspace():
        return False  # 3.14, example.com, "e.g." within itself
    following = rest.lstrip()
    if marks == ".":
        words = text[start : match.start()].split()
        word = words[-1].lstrip("(\"'“‘").lower() if words else ""
        if word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"):
            return False
    return not (marks[0] in ".…" and following[:1].islower())  # "approx. five", "well... maybe"


def split_text(text: str, max_chars: int, *, merge: bool = False) -> list[Piece]:
    """Pieces of at most `max_chars` characters, cut at sentence ends, else at clauses, else between words.

    Args:
        text: any length.
        max_chars: longest piece. Only a tag or a word that is longer by itself is cut inside, or kept whole if a tag.
        merge: join neighbouring short sentences of a paragraph, as long as they fit.
    """
    pieces: list[Piece] = []
    for sentence in split_sentences(text):
        parts = _fit(sentence.text, max_chars)
        pieces += [Piece(p, "clause") for p in parts[:-1]]
        pieces += [Piece(p, sentence.ends) for p in parts[-1:]]
    return _merged(pieces, max_chars) if merge else pieces


def _merged(pieces: list[Piece], max_chars: int) -> list[Piece]:
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and last.ends != "paragraph" and len(last.text) + 1 + len(piece.text) <= max_chars:
            merged[-1] = Piece(f"{last.text} {piece.text}", piece.ends)
        else:
            merged.append(piece)
    return merged


def _fit(sentence: str, max_chars: int) -> list[str]:
    """One sentence in parts that fit."""
    if len(sentence) <= max_chars:
        return [sentence]
    for atoms in (_cut(sentence, _CLAUSE), _cut(sentence, re.compile(r"\s+"))):
        parts = _pack(atoms, max_chars)
        if all(len(p) <= max_chars or _WHOLE.fullmatch(p) for p in parts):
            return parts
    return [p for part in parts for p in ([part] if _WHOLE.fullmatch(part) else _chunks(part, max_chars))]


def _cut(text: str, where: re.Pattern[str]) -> list[str]:
    """`text` cut at a pattern, but never inside a tag; the marks stay with the part before them."""
    kept = [m.span() for m in _WHOLE.finditer(text)]
    parts, start = [], 0
    for match in where.finditer(text):
        if match.end() > start and not any(a < match.start() < b or a < match.end() < b for a, b in kept):
            parts.append(text[start : match.end()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return [p for p in parts if p]


def _pack(atoms: list[str], max_chars: int) -> list[str]:
    """Neighbours joined as long as they fit."""
    parts: list[str] = []
    for atom in atoms:
        if parts and len(parts[-1]) + 1 + len(atom) <= max_chars:
            parts[-1] += " " + atom
        else:
            parts.append(atom)
    return parts


def _chunks(text: str, size: int) -> list[str]:
    return [text[i : i + size].strip() for i in range(0, len(text), size) if text[i : i + size].strip()]
