"""Text is cut where a reader would pause, and nothing is lost."""

from __future__ import annotations

import random
import re

import pytest

from lollms_local.sentences import split_sentences, split_text


def texts(text: str) -> list[str]:
    return [p.text for p in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there. How are you?", ["Hello there.", "How are you?"]),
        ("Dr. Smith paid $3.50 to J. R. Tolkien. Fine!", ["Dr. Smith paid $3.50 to J. R. Tolkien.", "Fine!"]),
        ("See example.com for more, e.g. prices. Bye.", ["See example.com for more, e.g. prices.", "Bye."]),
        ("Well... maybe. Or not?! Yes.", ["Well... maybe.", "Or not?!", "Yes."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("[laughs. Loudly] Ha. ♪ La. La la. ♪ Done.", ["[laughs. Loudly] Ha.", "♪ La. La la. ♪ Done."]),
        ("你好。你好吗？很好！", ["你好。", "你好吗？", "很好！"]),
        ("No end", ["No end"]),
        ("   \n\n ", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_blank_lines_end_a_paragraph_and_single_ones_do_not() -> None:
    pieces = split_sentences("One\ntwo. Three.\n\nFour.")
    assert [(p.text, p.ends) for p in pieces] == [
        ("One two.", "sentence"),
        ("Three.", "paragraph"),
        ("Four.", "paragraph"),
    ]


def test_long_sentences_are_cut_at_clauses_first() -> None:
    pieces = split_text("The first part is here, the second part is there; and the third.", 30)
    assert [p.text for p in pieces] == ["The first part is here,", "the second part is there;", "and the third."]
    assert [p.ends for p in pieces] == ["clause", "clause", "paragraph"]


def test_a_tag_is_never_cut_even_if_it_is_too_long() -> None:
    pieces = split_text("x " * 20 + "[clears throat and sighs deeply] " + "y " * 20, 12)
    assert "[clears throat and sighs deeply]" in [p.text for p in pieces]


def test_short_sentences_are_merged_within_a_paragraph_only() -> None:
    pieces = split_text("A. cat sat. It ran.\n\nIt slept.", 100, merge=True)
    assert [p.text for p in pieces] == ["A. cat sat. It ran.", "It slept."]


def test_nothing_but_white_space_is_lost_and_every_piece_fits() -> None:
    rng = random.Random(0)
    alphabet = "abc .,;!?…\n\"'()-—12 Dr. x"
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(200)))
        for merge in (False, True):
            pieces = split_text(text, 20, merge=merge)
            assert re.sub(r"\s", "", "".join(p.text for p in pieces)) == re.sub(r"\s", "", text)
            assert all(0 < len(p.text) <= 20 for p in pieces)
