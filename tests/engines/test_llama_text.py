"""Text in and out of the llama.cpp engine, without a model: pieces, thoughts, calls, number ranges, templates."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal

import jsonschema
import pytest

from lollms_local.engines.llama.gbnf import number_range, regex
from lollms_local.engines.llama.prefix import common_prefix
from lollms_local.engines.llama.schema import schema_grammar
from lollms_local.engines.llama.stream import AnswerStream, opened_thought
from lollms_local.engines.llama.template import ChatTemplate, flat_messages
from lollms_local.engines.llama.tools import CALL_MARKS, parse_calls
from lollms_local.errors import GenerationError, UnsupportedRequest
from lollms_local.modalities.chat import Piece
from tests.schemas import random_schema
from tests.tiny import gguf

# --- pieces -----------------------------------------------------------------------------------------------------------


def streamed(data: bytes, cuts: list[int], *, stop: tuple[str, ...] = (), calls: tuple[str, ...] = ()) -> list[Piece]:
    stream = AnswerStream(stop, calls=calls)
    pieces: list[Piece] = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        pieces += stream.feed(data[start:end])
    return pieces + stream.finish()


def joined(pieces: list[Piece]) -> tuple[str, str]:
    return tuple("".join(p.text for p in pieces if p.kind == kind) for kind in ("answer", "thought"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("Plain 你好 🙂.", "Plain 你好 🙂.", ""),
        ("<think>\nHm 🙂 <b>\n</think>\n\nYes < no", "Yes < no", "Hm 🙂 <b>\n"),
        ("a<think>b</think>c", "ac", "b"),
        ("<think>no end", "", "no end"),
        ("a </think> b <thin k>", "a </think> b <thin k>", ""),
        ("[THINK]x[/THINK]y", "y", "x"),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y", "y", "x"),
        ("fine STOP never", "fine ", ""),
        ("<think>STOP thinking</think>go STOP", "go ", "STOP thinking"),
        ("Look.<tool_call>{}</tool_call>", "Look.", ""),
    ],
)
def test_however_a_text_is_cut_the_same_pieces_come_out(text: str, answer: str, thought: str) -> None:
    data, draw = text.encode(), random.Random(1)
    ways = [list(range(1, len(data))), []]
    ways += [sorted(draw.sample(range(1, len(data)), draw.randint(1, min(6, len(data) - 1)))) for _ in range(60)]
    for cuts in ways:
        pieces = streamed(data, cuts, stop=("STOP",), calls=CALL_MARKS)
        assert joined(pieces) == (answer, thought), cuts
        assert all(p.text and "\ufffd" not in p.text for p in pieces)


def test_nothing_is_held_back_longer_than_it_must_be() -> None:
    stream = AnswerStream(("STOP",))
    assert stream.feed(b"Hello S") == [Piece("answer", "Hello ")]
    assert stream.feed(b"T") == []
    assert stream.feed(b"ay") == [Piece("answer", "STay")]


def test_a_raw_stream_leaves_thoughts_where_they_are() -> None:
    stream = AnswerStream(split_thoughts=False)
    assert joined(stream.feed(b"<think>a</think>b") + stream.finish()) == ("<think>a</think>b", "")


def test_a_prompt_may_leave_off_within_a_thought() -> None:
    assert opened_thought("<|im_start|>assistant\n<think>\n") == "</think>"
    assert opened_thought("<think>\n\n</think>\n\n") == ""
    stream = AnswerStream((), "</think>")
    assert joined(stream.feed(b"well</think>so") + stream.finish()) == ("so", "well")


# --- calls ------------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.mark.parametrize(
    ("text", "rest", "count"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>', "", 1),
        (
            'Ok.<tool_call>{"name":"weather","arguments":{}}</tool_call><tool_call>{"name":"weather"}</tool_call>',
            "Ok.",
            2,
        ),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}]', "", 1),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}', "", 1),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', "", 1),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, 0),
        ("<tool_call>{broken</tool_call>", None, 0),
        ('{"name": "weather", "arguments": 5}', None, 0),
        ("no call at all", None, 0),
    ],
)
def test_calls_are_read_in_every_family_s_form(text: str, rest: str | None, count: int) -> None:
    found, calls = parse_calls(text, TOOLS)
    assert found == (text if rest is None else rest) and len(calls) == count
    assert all(call.name == "weather" for call in calls)
    assert parse_calls(text, ()) == (text, ())


# --- grammars ---------------------------------------------------------------------------------------------------------


def as_pattern(grammar: str) -> re.Pattern[str]:
    """A grammar without rules, as a regular expression; only quotes and the spaces between parts differ."""
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"|(\[(?:[^\]\\]|\\.)*\](?:\{[^}]*\})?)|(\s+)|(.)', grammar)
    return re.compile("".join(re.escape(text) + group + other for text, group, _, other in parts))


def test_ranges_of_integers_allow_all_within_and_none_beyond() -> None:
    draw = random.Random(2)
    for _ in range(150):
        low = draw.choice([None, draw.randint(-1200, 1200)])
        high = None if draw.random() < 0.2 else (low or 0) + draw.randint(0, 1500)
        open_low, open_high = draw.random() < 0.3, draw.random() < 0.3
        text = number_range(
            None if low is None else Decimal(low), None if high is None else Decimal(high),
            open_low=open_low, open_high=open_high, decimals=0,
        )  # fmt: skip
        pattern = as_pattern(text) if text else None
        for number in [*range(-60, 60), *draw.sample(range(-3000, 3000), 60), low or 0, high or 0]:
            inside = (low is None or number > low or (number == low and not open_low)) and (
                high is None or number < high or (number == high and not open_high)
            )
            assert bool(pattern and pattern.fullmatch(str(number))) is inside, (low, high, open_low, open_high, number)
        assert not pattern or not any(pattern.fullmatch(bad) for bad in ("", "-", "007", "-0", "+1", "1e3"))


def test_ranges_with_decimals_allow_all_within_and_none_beyond() -> None:
    draw = random.Random(3)
    for _ in range(60):
        low = Decimal(draw.randint(-500, 500)) / draw.choice([1, 4, 100])
        high = low + Decimal(draw.randint(1, 400)) / draw.choice([1, 8, 100])
        text = number_range(low, high, open_low=False, open_high=True, decimals=2)
        pattern = as_pattern(text) if text else None
        for scaled in range(int(low * 100) - 30, int(high * 100) + 30):
            number = Decimal(scaled) / 100
            found = bool(pattern and pattern.fullmatch(f"{number:.2f}"))
            assert found is (low <= number < high), (low, high, number)


def test_an_open_range_has_few_ways_to_begin() -> None:
    """The library follows all of them at every token: with one per number of digits an answer took half a minute."""
    for decimals in (0, 2):
        text = number_range(Decimal(0), None, open_low=True, open_high=False, decimals=decimals)
        assert text.count("|") <= 8, text
        pattern = as_pattern(text)
        assert all(pattern.fullmatch(f"{n:.{decimals}f}") for n in (1, 9, 10, 4711, 10**11, 10**12 - 1))


def test_patterns_become_grammars_or_are_known_not_to() -> None:
    for pattern, good, bad in (
        ("^[a-z]{2,5}$", "abc", "a"),
        ("^\\d{3}-\\d{2}$", "123-45", "12-345"),
        ("^(yes|no)$", "no", "maybe"),
        ("^a+b?$", "aaab", "b"),
    ):
        grammar = regex(pattern, 16)
        assert grammar is not None
        assert as_pattern(grammar).fullmatch(good) and not as_pattern(grammar).fullmatch(bad)
    assert regex("^(?=a)b$", 16) is None and regex("(", 16) is None


def test_a_grammar_s_longest_answer_fits_its_budget_where_the_schema_allows_it() -> None:
    open_ended = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}
    assert "char{0,1000}" in schema_grammar(open_ended, 1_000_000)
    assert "char{0,1000}" not in schema_grammar(open_ended, 500)
    with pytest.raises(UnsupportedRequest, match="No JSON value"):
        schema_grammar({"type": "integer", "minimum": 3, "maximum": 2}, 100)
    with pytest.raises(UnsupportedRequest, match="no #/"):
        schema_grammar({"$ref": "#/$defs/none"}, 100)


def test_schemas_of_every_kind_become_grammars_that_the_library_takes() -> None:
    from llama_cpp import LlamaGrammar

    draw = random.Random(7)
    tree = {"$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}}, "$ref": "#/$defs/t"}
    for schema in [*(random_schema(draw) for _ in range(60)), {}, {"type": ["string", "null"]}, tree]:
        jsonschema.Draft202012Validator.check_schema(schema)
        grammar = schema_grammar(schema, 2000)
        assert grammar.startswith("root ::= ")
        assert LlamaGrammar.from_string(grammar, verbose=False)


# --- templates --------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_begun_is_continued() -> None:
    template = ChatTemplate(gguf.CHATML)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, I"}]
    assert template.render(messages).endswith("<|im_start|>assistant\nWell, I")
    assert template.render(messages[:1]).endswith("<|im_start|>assistant\n")


def test_a_template_that_refuses_system_messages_gets_the_words_with_the_question() -> None:
    gemma = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + gguf.CHATML
    text = ChatTemplate(gemma).render([{"role": "system", "content": "Brief."}, {"role": "user", "content": "Hi"}])
    assert "<|im_start|>user\nBrief.\n\nHi<|im_end|>" in text
    never = "{{ raise_exception('never') }}"
    with pytest.raises(UnsupportedRequest, match="refuses these messages: never"):
        ChatTemplate(never).render([{"role": "user", "content": "Hi"}])


def test_a_template_is_data_and_can_neither_reach_python_nor_fill_the_memory() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 99999999 }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% bad",
    ):
        with pytest.raises((GenerationError, UnsupportedRequest)):
            ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    assert json.loads(ChatTemplate("{{ messages | tojson }}").render([{"role": "user", "content": "<&ü>"}])) == [
        {"role": "user", "content": "<&ü>"}
    ]


def test_messages_of_parts_become_texts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}, "two"]
    assert flat_messages([{"role": "user", "content": parts}])[0]["content"] == "one\ntwo"
    assert flat_messages([{"role": "user", "content": parts}], "<img>")[0]["content"] == "one\n<img>\ntwo"
    assert flat_messages([{"role": "assistant", "content": None}])[0]["content"] == ""


def test_the_common_prefix_is_the_longest() -> None:
    draw = random.Random(4)
    for _ in range(500):
        a = [draw.randint(0, 1) for _ in range(draw.randint(0, 12))]
        b = [draw.randint(0, 1) for _ in range(draw.randint(0, 12))]
        expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == expected
