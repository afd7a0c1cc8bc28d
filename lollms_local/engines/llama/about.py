"""What is known about a model: from its header alone, and once it is loaded."""

from __future__ import annotations

import ctypes
from typing import Any

from ...gguf import GgufHeader
from ...modalities.chat import ChatInfo
from .files import ModelFiles
from .native import NativeModel
from .plan import Sizes
from .template import ChatTemplate

__all__ = ["about_file", "about_model", "template_source"]


def about_file(files: ModelFiles) -> dict[str, Any]:
    """What the header says: name, architecture, sizes, abilities."""
    header, sizes = files.header, Sizes.of(files.header, files.weights_bytes)
    template = ChatTemplate(template_source(header))
    return {
        "title": _name(header),
        "architecture": header.architecture,
        "size_label": str(header.metadata.get("general.size_label", "")),
        "size_bytes": files.weights_bytes,
        "layers": sizes.layers,
        "vocabulary_size": sizes.vocabulary,
        "embedding_size": sizes.embedding,
        "trained_context_size": sizes.trained_ctx,
        "supports_vision": files.mmproj is not None,
        "supports_thinking": template.knows_thinking,
        "supports_tools": template.knows_tools,
        "chat_template": template.source,
    }


def about_model(
    model: NativeModel,
    header: GgufHeader,
    sizes: Sizes,
    template: ChatTemplate,
    *,
    weights_bytes: int,
    n_ctx: int,
    n_gpu_layers: int,
    vision: bool,
) -> ChatInfo:
    """What is known about a loaded model, and how it was loaded."""
    return ChatInfo(
        name=_name(header),
        architecture=header.architecture,
        description=_description(model),
        parameters=int(model.lib.llama_model_n_params(model.handle)),
        weights_bytes=weights_bytes,
        vocabulary_size=sizes.vocabulary,
        context_tokens=n_ctx,
        trained_context_tokens=sizes.trained_ctx,
        embedding_size=sizes.embedding,
        n_gpu_layers=n_gpu_layers,
        vision=vision,
        thinking=template.knows_thinking,
        tools=template.knows_tools,
        chat_template=template.source,
    )


def template_source(header: GgufHeader) -> str:
    """The chat template that a model brings; "" if none."""
    value = header.metadata.get("tokenizer.chat_template", "")
    return value if isinstance(value, str) else ""


def _name(header: GgufHeader) -> str:
    return str(header.metadata.get("general.name", header.path.stem))


def _description(model: NativeModel) -> str:
    buffer = ctypes.create_string_buffer(256)
    model.lib.llama_model_desc(model.handle, buffer, 256)
    return buffer.value.decode("utf-8", errors="replace")
