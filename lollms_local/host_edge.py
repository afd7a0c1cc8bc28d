"""The edge between a binding and the host: settings of all bindings, the form of errors, progress and messages."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import Field

from .errors import LocalModelError
from .modalities.base import Progress
from .options import Options, choice

__all__ = ["BindingOptions", "console", "edge", "progress_dict"]

log = logging.getLogger(__name__)

R = TypeVar("R")


class BindingOptions(Options):
    """Settings that every one of our bindings has."""

    models_path: str = choice("", "Folder with models; empty = ~/.lollms_client/models (shared by all local bindings).")
    idle_unload_s: float = choice(0.0, "Unload a model after this many idle seconds; 0 = never.", ge=0)
    error_mode: Literal["raise", "dict"] = choice(
        "raise", "On failure: raise | dict. raise = an exception; dict = {status: error, message, hint}."
    )
    auto_install: bool = choice(False, "Install a missing library by pip when a model first needs it.")
    hf_token: str = Field(
        "",
        description="Hugging Face token for gated models; empty = environment variable HF_TOKEN. Never stored by us.",
        json_schema_extra={"is_secret": True},
    )


def edge(method: Callable[..., R]) -> Callable[..., R]:
    """Mark a method as the host's edge: our errors are remembered, logged, and given in the form of `error_mode`."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> R:
        try:
            return method(self, *args, **kwargs)
        except LocalModelError as exc:
            self._note(exc)
            if self.settings_now().error_mode == "dict":
                return {"status": "error", "message": exc.message, "hint": exc.hint}  # type: ignore[return-value]
            raise

    return guarded


def progress_dict(progress: Progress) -> dict[str, Any]:
    """A `Progress` with every key that one of the host's front ends reads."""
    percentage = 100.0 * progress.done / progress.total if progress.total else 0.0
    return {
        "status": progress.stage or "working",
        "message": f"{progress.stage or 'working'}: {progress.done:g}/{progress.total:g} {progress.unit}",
        "completed": progress.done,
        "total": progress.total,
        "percentage": percentage,
        "downloaded_size": progress.done,
        "total_size": progress.total,
        "unit": progress.unit,
        "stage": progress.stage,
        "preview": progress.preview,
    }


def console() -> Any:
    """The host's console, or the log where the host is not installed."""
    try:
        from ascii_colors import ASCIIColors
    except ImportError:
        return log
    return ASCIIColors
