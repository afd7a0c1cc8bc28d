"""What the host says about a chat, in the engine's terms: schemas, tools, images, and structured answers.

Kept apart from the binding so that none of it needs the host to be installed or tested.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import MediaError, UnsupportedRequest
from .modalities.chat import ChatResult

__all__ = [
    "StructuredText",
    "image_bytes",
    "one_system",
    "place_images",
    "read_schema",
    "read_tool_choice",
    "template_variables",
    "tool_message",
]

#: an image file larger than this is refused before it is decoded
MAX_IMAGE_BYTES = 64 << 20
_TYPE_NAMES = ("string", "integer", "number", "boolean", "array", "object", "null")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


def read_schema(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that a call asks for by `json_schema` or `response_format`; None = none.

    Accepted: a schema as mapping or JSON text, a pydantic class, and OpenAI's response_format
    ({"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}).

    Raises:
        UnsupportedRequest: it is none of these.
    """
    schema = given.get("json_schema")
    form = given.get("response_format")
    if schema is None and isinstance(form, Mapping):
        kind = form.get("type")
        if kind == "json_object":
            schema = form.get("schema") or {"type": "object"}
        elif kind == "json_schema":
            inner = form.get("json_schema", form)
            schema = inner.get("schema", inner) if isinstance(inner, Mapping) else inner
        elif kind not in (None, "text"):
            raise UnsupportedRequest(f"response_format {kind!r} is not known.", hint="Use json_object or json_schema.")
    elif schema is None and form is not None:
        schema = form
    if schema is None or schema == "":
        return None
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as exc:
            raise UnsupportedRequest(f"The JSON schema is not valid JSON: {exc}.") from exc
    if not isinstance(schema, Mapping):
        raise UnsupportedRequest("The JSON schema must be an object.", hint='For example {"type": "object"}.')
    return dict(schema)


def read_tool_choice(value: Any) -> str:
    """OpenAI's tool_choice as a word or a function's name."""
    if isinstance(value, Mapping):
        function = value.get("function", value)
        return str(function.get("name", "auto")) if isinstance(function, Mapping) else "auto"
    return str(value) if value else "auto"


def template_variables(given: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for the chat template: `chat_template_kwargs`, directly or in `extra_body`."""
    found: dict[str, Any] = {}
    body = given.get("extra_body")
    for source in (body if isinstance(body, Mapping) else {}, given):
        inner = source.get("chat_template_kwargs")
        if isinstance(inner, Mapping):
            found.update(inner)
    return found


# --- images -------------------------------------------------------------------------------------------------------


def place_images(
    messages: Sequence[Mapping[str, Any]] | None, extra: Sequence[Any] | None = None
) -> tuple[list[Mapping[str, Any]] | None, list[bytes]]:
    """Messages in which each image is one part, where it first was, and the images in the order of those parts.

    The host gives the same picture in a message and again beside it. What is only beside them comes first in the last
    message of the user; without messages there are only those.
    """
    seen: set[bytes] = set()
    if messages is None:
        return None, [data for data in map(image_bytes, extra or ()) if _is_new(data, seen)]
    placed: list[Mapping[str, Any]] = []
    images: list[list[bytes]] = []  # of each message
    for message in messages:
        row, found = _placed(message, seen)
        placed.append(row)
        images.append(found)
    late = [data for data in map(image_bytes, extra or ()) if _is_new(data, seen)]
    if late:
        last = max((n for n, row in enumerate(placed) if row.get("role") == "user"), default=len(placed) - 1)
        said = placed[last].get("content") or ""
        parts = list(said) if isinstance(said, (list, tuple)) else [{"type": "text", "text": str(said)}]
        placed[last] = {**placed[last], "content": [{"type": "image"}] * len(late) + parts}
        images[last] = late + images[last]
    return placed, [data for row in images for data in row]


def _placed(message: Mapping[str, Any], seen: set[bytes]) -> tuple[Mapping[str, Any], list[bytes]]:
    """One message with its images as parts, those seen before left out, and the images."""
    if not isinstance(message, Mapping):
        return message, []  # the engine says what is wrong with it
    content = message.get("content")
    parts = list(content) if isinstance(content, (list, tuple)) else [{"type": "text", "text": content or ""}]
    parts = [*({"type": "image", "image": value} for value in message.get("images") or ()), *parts]
    kept: list[Any] = []
    found: list[bytes] = []
    for part in parts:
        if not _is_image(part):
            kept.append(part)
            continue
        data = image_bytes(_value(part))
        if _is_new(data, seen):
            kept.append({"type": "image"})
            found.append(data)
    if not any(map(_is_image, parts)):
        return message, []
    return {**{k: v for k, v in message.items() if k != "images"}, "content": kept}, found


def _is_new(data: bytes, seen: set[bytes]) -> bool:
    digest = hashlib.sha256(data).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image_url", "image")


def _value(part: Mapping[str, Any]) -> Any:
    """What stands for the image of a part."""
    url = part.get("image_url", part.get("image", part.get("data")))
    return url.get("url") if isinstance(url, Mapping) else url


def image_bytes(value: Any) -> bytes:
    """The image file that a value stands for: bytes, a data URL, base64, or a path. Told apart by content.

    A JPEG in base64 begins with "/9j/" and so looks like a path.

    Raises:
        MediaError: it is none of these, or a web address (nothing is fetched from here).
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _checked(bytes(value))
    if isinstance(value, Path):
        return _from_file(value)
    if not isinstance(value, str) or not value.strip():
        raise MediaError("An image is neither bytes nor text.", hint="Give bytes, base64, a data URL or a path.")
    text = value.strip()
    if text.startswith("data:"):
        return _checked(_decoded(text.partition(",")[2]) or b"")
    if text.startswith(("http://", "https://")):
        raise MediaError(f"The image {text[:80]} is on the web.", hint="Download it first, then give the file.")
    decoded = _decoded(text)
    if decoded is not None and decoded.startswith(_MAGIC):
        return _checked(decoded)
    return _from_file(Path(text.removeprefix("file://")))


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _from_file(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size <= MAX_IMAGE_BYTES:
            return _checked(path.read_bytes())
    except OSError:
        pass  # a name that no file can have; said below
    raise MediaError(
        f"There is no image at {str(path)[:80]!r}.", hint="Give bytes, base64, a data URL or a path of an image file."
    )


def _checked(data: bytes) -> bytes:
    if not data.startswith(_MAGIC) or len(data) > MAX_IMAGE_BYTES:
        raise MediaError("An image is not a PNG, JPEG, WebP, GIF, BMP or TIFF file.", hint="Convert it to PNG.")
    return data


# --- structured answers -------------------------------------------------------------------------------------------


class StructuredText:
    """Mixed into the host's text processor: its schemas constrain the decoding itself, all else stays the host's.

    With it yes_no, multichoice_question, multichoice_ranking and generate_structured_content succeed with any model.
    """

    def generate_structured_content(self, prompt: str, schema: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's, with the schema passed on to the generation."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        schema = _written_out(schema)
        normal = self._parse_and_normalize_schema(schema)  # type: ignore[attr-defined]
        kwargs.setdefault("json_schema", normal)
        return super().generate_structured_content(prompt, schema, *args, **kwargs)  # type: ignore[misc]

    def generate_structured_content_pydantic(self, *args: Any, **kwargs: Any) -> Any:
        """The same for a pydantic class: an instance of it, or None.

        The client calls this method and the host's own class lacks it. Arguments: prompt and class, in any order.
        """
        given = [*args, *(kwargs.pop(k) for k in ("prompt", "pydantic_model", "model", "schema") if k in kwargs)]
        cls = next(a for a in given if hasattr(a, "model_json_schema"))
        prompt = next(a for a in given if isinstance(a, str))
        data = self.generate_structured_content(prompt, cls.model_json_schema(), **kwargs)
        return None if data is None else cls.model_validate(data)


def _written_out(schema: Any) -> Any:
    """The schema that {"name": "string", "legs": "integer"} means; read as JSON Schema it would allow anything."""
    short = isinstance(schema, Mapping) and len(schema) > 0 and all(value in _TYPE_NAMES for value in schema.values())
    if not short or "type" in schema:
        return schema
    fields = {name: {"type": value} for name, value in schema.items()}
    return {"type": "object", "properties": fields, "required": list(fields)}


def one_system(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Leading system messages as one; most templates know only one."""
    if not all(isinstance(m, Mapping) for m in messages):
        return messages  # the engine says what is wrong with them
    rows = [dict(m) for m in messages]
    count = next((i for i, m in enumerate(rows) if m.get("role") != "system"), len(rows))
    if count < 2:
        return rows
    parts: list[Any] = []
    for row in rows[:count]:
        content = row.get("content")
        parts += list(content) if isinstance(content, (list, tuple)) else [{"type": "text", "text": str(content or "")}]
    return [{"role": "system", "content": parts}, *rows[count:]]


def tool_message(result: ChatResult) -> dict[str, Any]:
    """An answer that calls tools, as a message in OpenAI's form."""
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for number, call in enumerate(result.tool_calls)
    ]
    return {"role": "assistant", "content": result.text, "tool_calls": calls, "finish_reason": "tool_calls"}
