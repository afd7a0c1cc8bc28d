"""Loading and asking a GGUF model by the real engine, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lollms_local.catalog import ModelSpec
from lollms_local.devices import select_device
from lollms_local.engines.llama_cpp import LlamaCppChat
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest, ChatResult, Piece

__all__ = ["ask", "chat", "load_options", "opened"]

ROOM = 8 << 30


def load_options(**options: Any) -> ChatLoadOptions:
    """One thread: two fight with whatever else runs on the machine."""
    return ChatLoadOptions(**{"n_threads": 1, **options})


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[LlamaCppChat]:
    """A loaded model, planned as the manager would and closed at the end."""
    spec = ModelSpec(id="tiny", modality="llm", engine="llama_cpp", source=f"path:{path}")
    device, wanted = select_device("cpu"), load_options(**options)
    footprint = LlamaCppChat.footprint(spec, path, device, wanted, ROOM)
    model = LlamaCppChat.load(spec, path, device, wanted, footprint)
    try:
        yield model
    finally:
        model.close()


def chat(model: LlamaCppChat, *turns: str, pieces: list[Piece] | None = None, **options: Any) -> ChatResult:
    """Answer a conversation whose turns begin with the user."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    return _answer(model, ChatRequest(messages=messages, grammar=options.pop("grammar", None)), pieces, options)


def ask(model: LlamaCppChat, prompt: str, *, pieces: list[Piece] | None = None, **options: Any) -> ChatResult:
    """Continue a text as it stands; `grammar` and `json_schema` are the request's, all else are options."""
    request = ChatRequest(prompt=prompt, **{k: options.pop(k) for k in ("grammar", "json_schema") if k in options})
    return _answer(model, request, pieces, options)


def _answer(
    model: LlamaCppChat, request: ChatRequest, pieces: list[Piece] | None, options: dict[str, Any]
) -> ChatResult:
    found: list[Piece] = [] if pieces is None else pieces
    chosen = ChatOptions(**{"temperature": 0.0, "n_predict": 24, **options})
    return model.generate(request, chosen, Control(), lambda piece: found.append(piece) or True)
