"""Options: every value may arrive as a string, 0 as "False" and 1 as "True", absence as None, "None", 0 or ""."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lollms_local.errors import UnsupportedRequest
from lollms_local.options import Options, auto, choice


class Sample(Options):
    """One field of each kind."""

    aliases: ClassVar[Mapping[str, str]] = {"num_steps": "steps"}

    steps: int = auto(0, "Steps; 0 = the model's own.", ge=0)
    seed: int = auto(-1, "Seed; -1 = a new one.", ge=-1)
    scale: float = choice(7.5, "Guidance.", ge=0, le=30)
    loop: bool = choice(True, "Loop.")
    text: str = choice("", "Text.")
    mode: Literal["auto", "on", "off"] = choice("auto", "Mode.")
    names: tuple[str, ...] = choice((), "Names.")
    table: dict[str, Any] = choice({}, "Table.")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((word, True) for word in ("True", "true", "1", 1, "on", "yes", True)),
        *((word, False) for word in ("False", "false", "0", 0, "off", "no", "", False)),
    ],
)
def test_booleans_by_every_spelling(value: Any, expected: bool) -> None:
    assert Sample.merge({"loop": value}).loop is expected


@pytest.mark.parametrize(
    ("value", "expected"), [("12", 12), ("12.0", 12), (12.0, 12), ("True", 1), (True, 1), (" 7 ", 7)]
)
def test_integers_by_every_spelling(value: Any, expected: int) -> None:
    assert Sample.merge({"steps": value}).steps == expected


def test_a_saved_zero_comes_back_as_false_and_is_zero() -> None:
    assert Sample.merge({"scale": "False"}).scale == 0.0
    assert Sample.merge({"seed": "False"}).seed == 0
    assert Sample.merge({"seed": "True"}).seed == 1


@pytest.mark.parametrize("unsaid", [None, "None", "null", ""])
def test_an_absent_number_leaves_the_choice_to_lower_layers(unsaid: Any) -> None:
    assert Sample.merge({"steps": unsaid}, {"steps": "20"}).steps == 20


def test_the_automatic_value_of_a_front_end_hides_no_lower_layer() -> None:
    assert Sample.merge({"steps": 0, "seed": -1}, {"steps": "0"}, {"steps": 4, "seed": 7}) == Sample(steps=4, seed=7)


def test_an_ordinary_zero_is_a_choice() -> None:
    assert Sample.merge({"scale": 0}, {"scale": 9}).scale == 0.0
    assert Sample.merge({"loop": False}, {"loop": True}).loop is False


def test_the_call_wins_over_the_configuration_over_the_model_over_the_class() -> None:
    merged = Sample.merge({"steps": 1}, {"steps": 2, "scale": "3"}, {"scale": 4, "mode": "on"})
    assert (merged.steps, merged.scale, merged.mode, merged.text) == (1, 3.0, "on", "")


def test_a_word_that_yaml_turned_into_a_boolean_is_found_again() -> None:
    assert Sample.merge({"mode": "False"}).mode == "off"
    assert Sample.merge({"mode": "True"}).mode == "on"
    assert Sample.merge({"mode": "ON"}).mode == "on"


@pytest.mark.parametrize("value", ["a, b", '["a", "b"]', "['a', 'b']", ["a", "b"], ("a", "b")])
def test_lists_travel_as_json_as_python_or_with_commas(value: Any) -> None:
    assert Sample.merge({"names": value}).names == ("a", "b")


def test_mappings_travel_as_json() -> None:
    assert Sample.merge({"table": '{"a": 1}'}).table == {"a": 1}


def test_an_alias_counts_and_our_own_spelling_wins() -> None:
    assert Sample.merge({"num_steps": "5"}).steps == 5
    assert Sample.merge({"num_steps": 5, "steps": 6}).steps == 6
    assert Sample.merge({"steps": 6, "num_steps": 5}).steps == 6


def test_unknown_names_are_ignored() -> None:
    assert Sample.merge({"bindings_other_port": "1", "_default_flag_order": "x"}) == Sample()


@pytest.mark.parametrize(
    "wrong", [{"steps": "many"}, {"steps": -3}, {"scale": 99}, {"steps": "1.5"}, {"mode": "maybe"}, {"scale": "nan"}]
)
def test_a_wrong_value_names_the_option_and_the_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        Sample.merge(wrong)
    ((name, value),) = wrong.items()
    assert name in caught.value.message and str(value).strip("-") in caught.value.message
    assert name in caught.value.hint


def test_the_description_has_host_types_and_no_null() -> None:
    rows = {row["name"]: row for row in Sample.describe()}
    assert {n: r["type"] for n, r in rows.items()} == {
        "steps": "int", "seed": "int", "scale": "float", "loop": "bool",
        "text": "str", "mode": "str", "names": "str", "table": "str",
    }  # fmt: skip
    assert rows["mode"]["options"] == ["auto", "on", "off"]
    assert all(row["default"] is not None and row["description"] for row in rows.values())
    assert rows["loop"]["default"] is True


@given(steps=st.integers(0, 10**6), seed=st.integers(-1, 2**31), scale=st.floats(0, 30), loop=st.booleans())
def test_text_and_back_gives_the_same_options(steps: int, seed: int, scale: float, loop: bool) -> None:
    given_values = {"steps": steps, "seed": seed, "scale": scale, "loop": loop}
    assert Sample.merge({k: str(v) for k, v in given_values.items()}) == Sample.merge(given_values)


def test_equal_options_are_equal_keys() -> None:
    assert Sample(steps=1) == Sample.merge({"steps": "1"})
