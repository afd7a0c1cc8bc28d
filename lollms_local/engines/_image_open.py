"""The pipeline that a picture model's files give: loaded whole, with what was replaced in place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ..errors import LoadError, UnsupportedRequest
from ._diffusers import (
    check_pipeline,
    load_part,
    load_pipeline,
)
from ._image_files import ImageFiles
from ._torch import foreign_errors, quiet, reject_unmaterialised, torch_dtype

__all__ = ["open_pipeline"]

log = logging.getLogger(__name__)


def open_pipeline(files: ImageFiles) -> Any:
    """Load the pipeline on the CPU, complete, with what was replaced in place.

    Raises:
        LoadError, InsufficientMemory.
    """
    parts: dict[str, Any] = {name: None for name in files.dropped if name in files.folder.classes}
    if files.vae is not None:
        parts["vae"] = load_part(files.vae, files.vae.parts[0], files.part_dtypes.get("vae", files.dtype))
    if files.transformer is not None:
        parts["transformer"] = _load_transformer(files)
    if files.single is None:
        if "safety_checker" in parts:
            parts["requires_safety_checker"] = False
        pipe = load_pipeline(files.folder, files.dtype, part_dtypes=files.part_dtypes, parts=parts)
    else:
        pipe = _load_single(files, parts)
    if files.part_dtypes:
        _bridge_dtypes(pipe, files)
    _bridge_clip(pipe)
    return pipe


def _bridge_clip(pipe: Any) -> None:
    """The SD pipelines look for the text encoder's last norm where transformers 4 had it, when layers are skipped."""
    encoder: Any = getattr(pipe, "text_encoder", None)
    if hasattr(encoder, "final_layer_norm") and not hasattr(encoder, "text_model"):
        # straight into the instance: assigned as an attribute it would become a second child of the network
        vars(encoder)["text_model"] = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)


def _load_single(files: ImageFiles, parts: Mapping[str, Any]) -> Any:
    import diffusers

    assert files.single is not None
    quiet()
    cls = getattr(diffusers, files.folder.class_name, None)
    if not hasattr(cls, "from_single_file"):
        raise UnsupportedRequest(
            f"{files.folder.class_name} does not load from a single file.",
            hint='Use a pipeline folder, with this file as the option "transformer".',
        )
    what = f"The checkpoint {files.single.name}"
    with foreign_errors(what, LoadError, "The file and the config folder do not belong together, or it is damaged."):
        pipe = cls.from_single_file(  # type: ignore[union-attr]
            str(files.single),
            config=str(files.folder.path),
            dtype=torch_dtype(files.dtype),
            local_files_only=True,
            **{name: part for name, part in parts.items() if part is not None},
        )
    check_pipeline(pipe, what)
    for name in files.part_dtypes:
        getattr(pipe, name).to(torch_dtype(files.part_dtypes[name]))
    return pipe


def _load_transformer(files: ImageFiles) -> Any:
    import diffusers

    assert files.transformer is not None
    quiet()
    cls = getattr(diffusers, files.folder.classes["transformer"])
    options: dict[str, Any] = {}
    if files.transformer.suffix == ".gguf":
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=torch_dtype(files.dtype))
    what = f"The transformer {files.transformer.name}"
    with foreign_errors(what, LoadError, f"It does not fit {files.folder.path.name}, or the file is damaged."):
        model = cls.from_single_file(
            str(files.transformer),
            config=str(files.folder.path),
            subfolder="transformer",
            dtype=torch_dtype(files.dtype),
            local_files_only=True,
            **options,
        )
    reject_unmaterialised(model, what)
    return model.eval()


def _bridge_dtypes(pipe: Any, files: ImageFiles) -> None:
    """Cast what enters a part to the part's own number format: the pipelines themselves assume one for all."""
    for name in files.part_dtypes:
        if name == "vae":
            for inner in ("encoder", "quant_conv", "post_quant_conv", "decoder"):
                module = getattr(pipe.vae, inner, None)
                if module is not None:
                    module.register_forward_pre_hook(_caster(files.part_dtypes["vae"]), with_kwargs=True)
    if any(name.startswith("text_encoder") for name in files.part_dtypes):
        for name in ("unet", "transformer"):
            module = getattr(pipe, name, None)
            if module is not None:
                module.register_forward_pre_hook(_caster(files.dtype, module), with_kwargs=True)


def _caster(dtype: str, module: Any = None) -> Any:
    """A pre-hook that casts floating tensors; a denoiser's time and guidance keep their precision."""
    import inspect

    import torch

    target = torch_dtype(dtype)
    names = list(inspect.signature(module.forward).parameters) if module is not None else []
    kept = {"timestep", "t", "guidance", "sigma"}

    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(target) if value.is_floating_point() else value
        if isinstance(value, (list, tuple)):
            return type(value)(cast(v) for v in value)
        return {k: cast(v) for k, v in value.items()} if isinstance(value, dict) else value

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        places = enumerate(args)
        positional = tuple(v if i < len(names) and names[i] in kept else cast(v) for i, v in places)
        return positional, {k: v if k in kept else cast(v) for k, v in kwargs.items()}

    return hook
