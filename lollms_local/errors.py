"""Everything that lollms_local raises on purpose.

    LocalModelError
    ├── CatalogError(ValueError)              models.yaml or a setting is wrong
    ├── ModelNotFound(LookupError)            no such model id
    ├── ModelNotDownloaded(FileNotFoundError) known, but not on this disk
    ├── EngineNotInstalled(ImportError)       a library is missing
    ├── DeviceNotAvailable(RuntimeError)      asked for a device that is not there
    ├── InsufficientMemory(MemoryError)       it does not fit, with the receipt
    ├── ModelBusy(RuntimeError)               in use, or no room before the deadline
    ├── LoadError(RuntimeError)               files damaged, unsafe or refused by the library
    ├── UnsupportedRequest(ValueError)        this model cannot do that
    ├── MediaError(ValueError)                input cannot be decoded, output cannot be encoded
    ├── DownloadError(RuntimeError)           a fetch failed; nothing half done is left behind
    ├── GenerationError(RuntimeError)         inference failed
    └── Cancelled                             the caller stopped it

Each carries a ``message`` (what happened, one sentence) and a ``hint`` (what to do about it, one sentence that
works when followed). ``str(error)`` is both. The texts avoid the words by which the LoLLMS host recognises a
network fault ("timeout", "connection", "unavailable"): it would retry three times and then hide the real reason.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "Cancelled",
    "CatalogError",
    "DeviceNotAvailable",
    "DownloadError",
    "EngineNotInstalled",
    "GenerationError",
    "InsufficientMemory",
    "LoadError",
    "LocalModelError",
    "MediaError",
    "ModelBusy",
    "ModelNotDownloaded",
    "ModelNotFound",
    "UnsupportedRequest",
]


class LocalModelError(Exception):
    """Root of all deliberate errors.

    Args:
        message: what happened, one sentence.
        hint: what the reader can do about it, one sentence; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(cls: type[LocalModelError], message: str, hint: str) -> LocalModelError:
    return cls(message, hint=hint)


class CatalogError(LocalModelError, ValueError):
    """models.yaml, the user's own models file or a setting is wrong; names file, line and key."""


class ModelNotFound(LocalModelError, LookupError):
    """No model of that name; the hint lists near names."""


class ModelNotDownloaded(LocalModelError, FileNotFoundError):
    """The model is known but its files are not here; the hint is the command that fetches them."""


class EngineNotInstalled(LocalModelError, ImportError):
    """The library that runs this model is missing; the hint names the pip extra."""


class DeviceNotAvailable(LocalModelError, RuntimeError):
    """A device was asked for by name and is not there; says what was found."""


class InsufficientMemory(LocalModelError, MemoryError):
    """The model does not fit; the message is the receipt: who holds what, what was tried, what would fit.

    Attributes:
        ran_out: it was thought to fit, and memory ran out while it was loaded or worked.
    """

    ran_out: bool = False


class ModelBusy(LocalModelError, RuntimeError):
    """The model is in use, or no room came free before the deadline."""


class LoadError(LocalModelError, RuntimeError):
    """The model's files are damaged, unsafe or refused by the library."""


class UnsupportedRequest(LocalModelError, ValueError):
    """This model cannot do what was asked (edit, language, size, lyrics...)."""


class MediaError(LocalModelError, ValueError):
    """An input cannot be decoded, or an output cannot be encoded."""


class DownloadError(LocalModelError, RuntimeError):
    """A download failed or was refused; what was there before is unchanged."""


class GenerationError(LocalModelError, RuntimeError):
    """Inference failed; raised from the library's own error."""


class Cancelled(LocalModelError):
    """The caller stopped the work."""

    def __init__(self, message: str = "The work was cancelled.", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
