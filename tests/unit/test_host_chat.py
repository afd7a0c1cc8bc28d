"""What the host says about a chat, in every form in which it says it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pydantic
import pytest
from PIL import Image

from lollms_local.errors import MediaError, UnsupportedRequest
from lollms_local.host_chat import image_bytes, place_images, read_schema, read_tool_choice, template_variables


def picture(form: str, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format=form)
    return buffer.getvalue()


def part(data: bytes) -> dict[str, Any]:
    """As the host has it: always labelled JPEG."""
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_is_found_behind_each_of_its_four_forms(form: str, tmp_path: Path) -> None:
    data = picture(form)
    text = base64.b64encode(data).decode()
    path = tmp_path / "a picture"
    path.write_bytes(data)
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for value in (
        data,
        bytearray(data),
        text,
        lines,
        f"data:image/png;base64,{text}",
        str(path),
        path,
        f"file://{path}",
    ):
        assert image_bytes(value) == data


def test_what_is_no_image_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    for value in (
        b"",
        b"hello",
        "",
        None,
        5,
        "data:image/png;base64,!!!",
        "none.png",
        "x" * 5000,
        str(tmp_path / "text.png"),
    ):
        with pytest.raises(MediaError):
            image_bytes(value)
    with pytest.raises(MediaError, match="on the web"):
        image_bytes("https://example.org/a.png")


def test_a_picture_that_comes_twice_is_taken_once() -> None:
    red, blue = picture("JPEG"), picture("PNG", "blue")
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Look."}, part(red)]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "?"}, part(blue)],
            "images": [base64.b64encode(red).decode()],
        },
    ]
    placed, images = place_images(messages, [red, base64.b64encode(blue).decode()])
    assert images == [red, blue]
    image = {"type": "image"}
    assert placed == [
        {"role": "system", "content": [{"type": "text", "text": "Look."}, image]},
        {"role": "user", "content": [{"type": "text", "text": "?"}, image]},
    ]
    assert place_images([{"role": "user", "content": "no images"}]) == ([{"role": "user", "content": "no images"}], [])
    assert place_images(None, [red, red, blue]) == (None, [red, blue])


def test_a_picture_beside_the_messages_belongs_to_the_user_s_last_one() -> None:
    red, blue, green = picture("PNG"), picture("PNG", "blue"), picture("PNG", "green")
    messages = [
        {"role": "user", "content": "First."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Now."},
        {"role": "assistant", "content": [part(green)]},
    ]
    placed, images = place_images(messages, [red, blue])
    image = {"type": "image"}
    assert images == [red, blue, green], "in the order of their places"
    assert placed is not None and placed[2]["content"] == [image, image, {"type": "text", "text": "Now."}]
    assert placed[:2] == messages[:2] and messages[2]["content"] == "Now."


class Person(pydantic.BaseModel):
    name: str


def test_a_schema_is_read_in_every_form() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    forms: list[dict[str, Any]] = [
        {"json_schema": schema},
        {"json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}}'},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"response_format": {"type": "json_schema", "schema": schema}},
        {"response_format": {"type": "json_object", "schema": schema}},
    ]
    for form in forms:
        assert read_schema(form) == schema, form
    assert read_schema({"response_format": {"type": "json_object"}}) == {"type": "object"}
    for form in ({"json_schema": Person}, {"response_format": Person}):
        found = read_schema(form)
        assert found is not None and found["properties"]["name"]["type"] == "string"
    for empty in ({}, {"json_schema": None}, {"json_schema": ""}, {"response_format": {"type": "text"}}):
        assert read_schema(empty) is None
    for wrong in ({"json_schema": "{"}, {"json_schema": 5}, {"response_format": {"type": "xml"}}):
        with pytest.raises(UnsupportedRequest):
            read_schema(wrong)


def test_the_template_s_variables_come_from_both_places_and_the_nearer_one_wins() -> None:
    given = {
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False, "a": 1}, "thinking": False},
        "chat_template_kwargs": {"a": 2},
    }
    assert template_variables(given) == {"enable_thinking": False, "a": 2}
    assert template_variables({"extra_body": None}) == {}


def test_the_choice_of_a_tool_is_a_word_or_a_name() -> None:
    assert read_tool_choice(None) == read_tool_choice("auto") == "auto"
    assert read_tool_choice("required") == "required"
    assert read_tool_choice({"type": "function", "function": {"name": "weather"}}) == "weather"
