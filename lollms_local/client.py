"""connect(): a LollmsClient with our bindings in place, whether or not the host can see them by itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CatalogError, LocalModelError
from .linking import find_bindings_source, host_folder
from .modalities.base import MODALITIES, Modality

if TYPE_CHECKING:
    from lollms_client import LollmsClient

__all__ = ["connect", "show_bindings"]

#: the words by which `connect` takes a model for each modality
WORDS: dict[str, Modality] = {
    "chat": "llm",
    "images": "tti",
    "transcription": "stt",
    "speech": "tts",
    "video": "ttv",
    "music": "ttm",
}


def connect(
    *,
    chat: str | bool = False,
    images: str | bool = False,
    transcription: str | bool = False,
    speech: str | bool = False,
    video: str | bool = False,
    music: str | bool = False,
    debug: bool = False,
    **client_arguments: Any,
) -> LollmsClient:
    """A LollmsClient that uses local models.

    ``connect(chat="smollm2-135m-instruct", transcription=True)`` gives a client with two local bindings; True takes the
    binding's default model. The host loads a model that is named at once; the others load when they are first used.

    Args:
        chat, images, transcription, speech, video, music: a model's id, Hugging Face repository or path, or True.
        debug: the host's own debug output.
        client_arguments: anything else that `LollmsClient` takes, e.g. ``llm_binding_config={"n_ctx": 8192}``.

    Raises:
        LocalModelError: lollms-client is not installed.
        CatalogError: an argument is given in two ways.
    """
    if host_folder() is None:
        raise LocalModelError("The LoLLMS client is not installed here.", hint="Run: pip install lollms-client")
    said = dict(zip(WORDS, (chat, images, transcription, speech, video, music), strict=True))
    for word, model in said.items():
        if model:
            _add(client_arguments, word, WORDS[word], model)
    for modality, folder in show_bindings().items():
        if client_arguments.get(f"{modality}_binding_name") == f"local_{modality}":
            client_arguments.setdefault(f"{modality}_bindings_dir", folder)
    from lollms_client import LollmsClient

    return LollmsClient(debug=debug, **client_arguments)


def _add(arguments: dict[str, Any], word: str, modality: Modality, model: str | bool) -> None:
    ours = f"local_{modality}"
    if arguments.setdefault(f"{modality}_binding_name", ours) != ours:
        raise CatalogError(
            f"{word}= and {modality}_binding_name= ask for different bindings.", hint="Give one of them."
        )
    if isinstance(model, str):
        config = dict(arguments.get(f"{modality}_binding_config") or {})
        if config.setdefault("model_name", model) != model:
            raise CatalogError(
                f"{word}= and {modality}_binding_config name different models.", hint="Give one of them."
            )
        arguments[f"{modality}_binding_config"] = config


def show_bindings() -> dict[Modality, Path]:
    """Let the host import those of our bindings that do not lie in its own folders.

    Returns:
        For each of them, the directory to give to the client as ``<modality>_bindings_dir``.
    """
    host = host_folder()
    needed: dict[Modality, Path] = {}
    for modality in MODALITIES:
        name = f"{modality}_bindings"
        source = find_bindings_source(modality)
        if host is None or source is None or (host / name / f"local_{modality}" / "__init__.py").is_file():
            continue
        folder = source.parent
        package = importlib.import_module(f"lollms_client.{name}")
        if str(folder) not in package.__path__:
            package.__path__.append(str(folder))
        needed[modality] = folder
    return needed
