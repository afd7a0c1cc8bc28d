"""Text to image, image to image and inpainting: pipelines of one family on one set of weights."""

from __future__ import annotations

import inspect
import logging
import threading
from typing import Any

from ..errors import UnsupportedRequest
from ..modalities.image import EditInput

__all__ = ["Tasks"]

log = logging.getLogger(__name__)

_ABLE = {"text": "text to image", "image": "image to image", "inpaint": "inpainting"}
_WORDS = {"text": "make pictures from text alone", "image": "edit pictures", "inpaint": "edit under a mask"}
#: pipelines that are made for a source and make nothing without one
_EDITORS = ("Inpaint", "Img2Img", "Edit", "Kontext", "Fill")
#: pipelines that combine several sources
_COMBINERS = ("Flux2", "EditPlus", "OmniGen", "ZImageOmni")


class Tasks:
    """The pipelines of one loaded model, derived when first needed. They share every network with it.

    Args:
        pipe: the loaded pipeline.
        what: names the model in messages.
    """

    def __init__(self, pipe: Any, what: str) -> None:
        self._pipe = pipe
        self._what = what
        self._derived: dict[str, Any] = {}
        self._lock = threading.Lock()

    def able(self) -> tuple[str, ...]:
        """Which of "text", "image", "inpaint" the family can do."""
        return tuple(task for task in _ABLE if self.get(task) is not None)

    def get(self, task: str) -> Any:
        """The pipeline for a task; None if this family has none."""
        with self._lock:
            if task not in self._derived:
                self._derived[task] = self._pipe if self._is_own(task) else self._derive(task)
            return self._derived[task]

    def close(self) -> None:
        """Let go of the networks."""
        self._derived.clear()
        self._pipe = None

    def choose(self, edit: EditInput) -> tuple[str, Any]:
        """Task and pipeline for what the caller gave.

        Raises:
            UnsupportedRequest: this model cannot do it; says what it can.
        """
        task = "inpaint" if edit.mask is not None else "image" if edit.images else "text"
        pipe = self.get(task)
        if pipe is None and task == "inpaint":
            pipe = self.get("image")  # the mask is then applied to the finished picture
        if pipe is None:
            raise UnsupportedRequest(
                f"{self._what} cannot {_WORDS[task]}.", hint=f"It can do: {', '.join(_ABLE[t] for t in self.able())}."
            )
        if len(edit.images) > 1 and not any(word in type(pipe).__name__ for word in _COMBINERS):
            raise UnsupportedRequest(
                f"{self._what} edits one picture at a time; {len(edit.images)} were given.",
                hint="Give one, or choose a model that combines several (FLUX.2, Qwen-Image-Edit-Plus).",
            )
        return task, pipe

    def _is_own(self, task: str) -> bool:
        """Whether the loaded pipeline itself does the task."""
        known = inspect.signature(self._pipe.__call__).parameters
        if task == "inpaint":
            return "mask_image" in known
        if task == "image":
            return "image" in known and "mask_image" not in known
        return not any(word in type(self._pipe).__name__ for word in _EDITORS)

    def _derive(self, task: str) -> Any:
        import diffusers

        auto = {
            "text": diffusers.AutoPipelineForText2Image,
            "image": diffusers.AutoPipelineForImage2Image,
            "inpaint": diffusers.AutoPipelineForInpainting,
        }[task]
        try:
            derived = auto.from_pipe(self._pipe)
        except ValueError as exc:  # this family has no such task, or its weights are not made for it
            log.info("%s: no %s: %s", self._what, _ABLE[task], exc)
            return None
        derived.set_progress_bar_config(disable=True)
        for name in ("_all_hooks", "_offload_device", "_offload_gpu_id"):
            if hasattr(self._pipe, name):
                setattr(derived, name, getattr(self._pipe, name))
        return derived
