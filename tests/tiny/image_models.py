"""Tiny picture models on disk and loaded by the real engine; built once per process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.engines.diffusers_image import DiffusersImage
from lollms_local.modalities.base import Control
from lollms_local.modalities.image import EditInput, ImageLoadOptions, ImageOptions, ImageResult, Lora

from . import diffusion

CPU = Device("cpu")
ROOM = 1 << 33


@functools.cache
def root() -> Path:
    """A folder that lives as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-images-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def folder(family: str) -> Path:
    """The folder of a family's tiny pipeline. Shared: never change it, use `copy`."""
    return diffusion.save(diffusion.FAMILIES[family](), root() / family)


def copy(family: str, target: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder(family), target))


@functools.cache
def plain(family: str) -> Any:
    """The same pipeline as diffusers itself loads it, float32."""
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder(family)), dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def spec(path: Path, **fields: Any) -> ModelSpec:
    """A catalogue record for a path."""
    return ModelSpec(id="tiny", modality="tti", engine="diffusers_image", source=f"path:{path}", **fields)


def load(path: Path, room: int = ROOM, **options: Any) -> DiffusersImage:
    """Load through the engine's own two steps."""
    wanted = ImageLoadOptions(**{"dtype": "float32", **options})
    record = spec(path)
    footprint = DiffusersImage.footprint(record, path, CPU, wanted, room)
    return DiffusersImage.load(record, path, CPU, wanted, footprint)


@functools.cache
def loaded(family: str) -> DiffusersImage:
    """A loaded model that tests share: they must leave it as it was."""
    return load(folder(family))


def make(
    model: DiffusersImage,
    prompt: str = "a heron",
    *,
    control: Control | None = None,
    edit: EditInput | None = None,
    loras: tuple[Lora, ...] = (),
    **options: Any,
) -> ImageResult:
    """One small job."""
    wanted = ImageOptions(**{"steps": 2, "width": 32, "height": 32, "seed": 1, **options})
    return model.generate(prompt, wanted, control or Control(), edit=edit, loras=loras)


def pixels(*args: Any, **options: Any) -> Any:
    """The first picture of `make`: uint8 [height, width, 3]."""
    return make(*args, **options).images[0].pixels
