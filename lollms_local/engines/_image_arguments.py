"""A call's options as the keyword arguments that a pipeline knows; their names and meanings differ between families."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from ..errors import UnsupportedRequest
from ..modalities.image import ImageOptions
from ._diffusers import accepted
from ._image_pixels import Canvas
from ._image_prompt import prompt_arguments

__all__ = ["image_arguments"]

Known = Mapping[str, inspect.Parameter]


def image_arguments(
    pipe: Any, prompt: str, options: ImageOptions, canvas: Canvas
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arguments for `pipe(...)`, generators excepted, and notes for the user.

    Raises:
        UnsupportedRequest: a value makes no sense for this task.
    """
    known = inspect.signature(pipe.__call__).parameters
    guidance = _guidance(options, known)
    negative, notes = _negative(options, known, guidance)
    strength = _strength(options, known) if canvas.images else None
    steps, more_notes = _steps(options, known, strength)
    scale = guidance.get("guidance_scale", known["guidance_scale"].default if "guidance_scale" in known else 0)
    guided = scale is not None and scale > 1
    texts, text_notes = prompt_arguments(pipe, prompt, negative, clip_skip=options.clip_skip, guided=guided)
    found: dict[str, Any] = {
        **texts,
        **guidance,
        "width": canvas.width,
        "height": canvas.height,
        "num_inference_steps": steps,
        "output_type": "pil",
        "strength": strength,
        "mask_image": canvas.mask,
        "clip_skip": options.clip_skip or None,
    }
    if canvas.images:
        found["image"] = list(canvas.images) if len(canvas.images) > 1 else canvas.images[0]
    if options.clip_skip and "clip_skip" not in known:
        notes = (*notes, "This model has no layers that clip_skip could skip.")
    return accepted(pipe, {k: v for k, v in found.items() if v is not None}), (*notes, *more_notes, *text_notes)


def _guidance(options: ImageOptions, known: Known) -> dict[str, float]:
    """Guidance under the names this pipeline has. 0 stays 0."""
    found: dict[str, float] = {}
    # Qwen-Image has a guidance_scale for distilled models only (default None); what users mean is its true_cfg_scale
    real = "true_cfg_scale" in known and ("guidance_scale" not in known or known["guidance_scale"].default is None)
    if options.guidance >= 0:
        found["true_cfg_scale" if real else "guidance_scale"] = options.guidance
    if options.true_cfg >= 0 and "true_cfg_scale" in known:
        found["true_cfg_scale"] = options.true_cfg
    return found


def _negative(options: ImageOptions, known: Known, guidance: Mapping[str, float]) -> tuple[str | None, tuple[str, ...]]:
    """The negative prompt as this pipeline wants it; a sentence where it has no effect."""
    negative = options.negative_prompt or None
    if "true_cfg_scale" not in known:
        if negative is not None and "negative_prompt" not in known:
            return None, ("This model takes no negative prompt; it was left out.",)
        return negative, ()
    scale = guidance.get("true_cfg_scale", float(known["true_cfg_scale"].default))
    if negative is not None and scale <= 1:
        return negative, ("The negative prompt has no effect unless true_cfg is above 1.",)
    if negative is None and guidance.get("true_cfg_scale", 0) > 1:
        return " ", ()  # such pipelines guide only if there is a negative prompt
    return negative, ()


def _strength(options: ImageOptions, known: Known) -> float | None:
    """The strength to use; None where the pipeline has none.

    Raises:
        UnsupportedRequest: it is 0, which would change nothing.
    """
    if "strength" not in known:
        return None
    if options.strength == 0:
        raise UnsupportedRequest("strength=0 would leave the picture as it is.", hint="Use a value above 0, up to 1.")
    return options.strength if options.strength > 0 else float(known["strength"].default)


def _steps(options: ImageOptions, known: Known, strength: float | None) -> tuple[int, tuple[str, ...]]:
    """Steps; more than asked where a low strength would leave none."""
    steps = options.steps or int(known["num_inference_steps"].default)
    if strength is None or steps * strength >= 1:
        return steps, ()
    needed = math.ceil(1 / strength)
    return needed, (f"At strength {strength:g} at least {needed} steps are needed; made with {needed}, not {steps}.",)
