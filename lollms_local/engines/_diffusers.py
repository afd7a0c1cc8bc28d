"""What the picture and the video engine share: opening a pipeline safely and completely.

`_pipeline_folder` has judged the folder; here every part is loaded by itself, because only that way the library says
which tensors it did not find. Jobs on a loaded pipeline are in `_diffusion_job`, placement in `_diffusion_place`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LoadError
from ._diffusion_job import JobHooks, accepted, job_pipe, named_scheduler, scheduler_names
from ._diffusion_place import check_attention, place, smaller_forms, tune
from ._pipeline_folder import (
    DTYPE_WIDTH,
    LIBRARIES,
    Part,
    PipelineFolder,
    inspect_config,
    inspect_folder,
    inspect_part,
)
from ._torch import (
    foreign_errors,
    load_pretrained,
    quiet,
    reject_missing,
    reject_unmaterialised,
    tensor_bytes,
    torch_dtype,
)

__all__ = [
    "DTYPE_WIDTH",
    "JobHooks",
    "Part",
    "PipelineFolder",
    "accepted",
    "check_attention",
    "check_pipeline",
    "inspect_config",
    "inspect_folder",
    "inspect_part",
    "job_pipe",
    "load_part",
    "load_pipeline",
    "measured_bytes",
    "modules_of",
    "named_scheduler",
    "place",
    "scheduler_names",
    "smaller_forms",
    "tune",
]


def load_pipeline(
    folder: PipelineFolder,
    dtype: str,
    *,
    part_dtypes: Mapping[str, str] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> Any:
    """The pipeline on the CPU, complete, in an explicit number format, with progress bars off.

    Args:
        folder: as `inspect_folder` judged it.
        dtype: "float32", "bfloat16" or "float16", for every part that `part_dtypes` does not name.
        part_dtypes: number formats of single parts.
        parts: objects to use instead of the folder's own parts; None leaves an optional one out.

    Returns:
        A `diffusers.DiffusionPipeline`.

    Raises:
        LoadError: the library refuses the files, or tensors are missing. InsufficientMemory: no room.
    """
    import diffusers

    quiet()
    given = dict(parts or {})
    for part in folder.parts:
        if part.name not in given:
            given[part.name] = load_part(folder, part, (part_dtypes or {}).get(part.name, dtype))
    what = f"The pipeline {folder.path.name}"
    with foreign_errors(what, LoadError, "Remove the model and download it again."):
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            str(folder.path), dtype=torch_dtype(dtype), local_files_only=True, use_safetensors=True, **given
        )
    check_pipeline(pipe, what)
    return pipe


def check_pipeline(pipe: Any, what: str) -> None:
    """Refuse a pipeline with parts that were not loaded; silence it.

    Raises:
        LoadError: a tensor has no memory ("meta").
    """
    pipe.set_progress_bar_config(disable=True)
    for name, module in modules_of(pipe).items():
        reject_unmaterialised(module, f"{what}, part {name}")
        module.eval()


def modules_of(pipe: Any) -> dict[str, Any]:
    """The pipeline's parts that are networks, by name."""
    import torch

    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def measured_bytes(*pipes: Any) -> int:
    """Bytes of all tensors of these pipelines; what they share counts once."""
    return tensor_bytes(*(module for pipe in pipes for module in modules_of(pipe).values()))


def load_part(folder: PipelineFolder, part: Part, dtype: str) -> Any:
    """One network of a pipeline, complete, on the CPU.

    Raises:
        LoadError: the class is unknown, files are damaged, or tensors are missing. InsufficientMemory: no room.
    """
    from transformers import PreTrainedModel

    cls = _part_class(folder, part)
    home = part.home
    what = f"The part {part.name} of {folder.path.name}"
    options: dict[str, Any] = {"variant": part.variant} if part.variant else {}
    if issubclass(cls, PreTrainedModel):
        return load_pretrained(cls, home, dtype, what, **options)
    quiet()
    with foreign_errors(what, LoadError, "Remove the model and download it again."):
        model, info = cls.from_pretrained(
            str(home),
            torch_dtype=torch_dtype(dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    reject_missing(info, what)
    reject_unmaterialised(model, what)
    return model.eval()


def _part_class(folder: PipelineFolder, part: Part) -> Any:
    from diffusers import pipelines
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    try:
        if not hasattr(pipelines, part.library) and part.library not in LIBRARIES:
            raise AttributeError(part.library)
        return simple_get_class_obj(part.library, part.class_name)
    except (AttributeError, ImportError, ValueError) as exc:
        raise LoadError(
            f"The part {part.name} of {folder.path.name} is a {part.class_name}, which no installed library knows.",
            hint="Upgrade diffusers and transformers, or choose another model.",
        ) from exc
