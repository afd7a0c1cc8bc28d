"""One call of a video pipeline: which pipeline object, and which arguments by which names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..modalities.video import VideoOptions
from ._diffusers import accepted
from ._video_families import VideoRules
from ._video_request import FilmRequest

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["film_arguments", "starting_from_picture"]


def starting_from_picture(pipe: Any, rules: VideoRules) -> Any:
    """A pipeline that takes a first picture, on the weights of `pipe`; `pipe` itself if it does so already."""
    if not rules.image_class or type(pipe).__name__ == rules.image_class:
        return pipe
    import diffusers

    own = {name: pipe.config[name] for name in ("expand_timesteps", "boundary_ratio") if name in pipe.config}
    derived = getattr(diffusers, rules.image_class)(**pipe.components, **own)
    derived.set_progress_bar_config(disable=True)
    # an offloading pipeline finds its hooks and its device in these
    for name in ("_all_hooks", "_offload_gpu_id", "_offload_device"):
        if hasattr(pipe, name):
            setattr(derived, name, getattr(pipe, name))
    return derived


def film_arguments(
    pipe: Any,
    rules: VideoRules,
    prompt: str,
    options: VideoOptions,
    request: FilmRequest,
    image: Image.Image | None,
    seed: int,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Keyword arguments by the names that this pipeline knows, and notes about what it has no use for."""
    import torch

    notes = []
    arguments: dict[str, Any] = {
        "prompt": prompt,
        "num_frames": request.ask_frames,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "frame_rate": request.fps,
        # drawn on the CPU, so that a seed starts from the same noise on every device
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "np",
        **rules.call,
    }
    if options.negative_prompt:
        arguments["negative_prompt"] = options.negative_prompt
    if image is not None:
        arguments["image"] = _cut_to(image, request.width, request.height)
    if options.guidance_2 >= 0:
        if pipe.config.get("boundary_ratio") is not None:
            arguments["guidance_scale_2"] = options.guidance_2
        else:
            notes.append("guidance_2 was left out: only Wan 2.2 A14B has a second half of its own.")
    length = len(pipe.tokenizer(prompt).input_ids)
    if length > rules.prompt_tokens:
        notes.append(f"The prompt has {length} tokens; {rules.family} reads the first {rules.prompt_tokens}.")
    return accepted(pipe, arguments), tuple(notes)


def _cut_to(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in the film's size: its middle, not stretched."""
    from PIL import Image as Pil
    from PIL import ImageOps

    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Pil.Resampling.LANCZOS)
