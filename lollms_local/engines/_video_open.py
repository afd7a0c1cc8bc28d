"""Opening a video model: a pipeline's folder, or AnimateDiff's motion layers with the Stable Diffusion they animate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineNotInstalled, LoadError, ModelNotDownloaded
from ..footprint import read_safetensors, weight_files
from ..modalities.video import VideoLoadOptions
from ._diffusers import Part, PipelineFolder, check_pipeline, inspect_folder, load_part, load_pipeline
from ._torch import foreign_errors
from ._video_families import VideoRules, rules_for

__all__ = ["VideoFiles", "check_packages", "find_video_files", "open_video_pipeline"]

#: parts of a Stable Diffusion folder that AnimateDiff has no use for
_UNUSED = frozenset({"safety_checker", "image_encoder"})


@dataclass(frozen=True)
class VideoFiles:
    """A video model on disk, judged.

    Attributes:
        folder: the pipeline's folder; for a motion adapter, that of the Stable Diffusion it animates.
        rules: what it can make.
        dtype: number format of its weights.
        part_dtypes: number formats of single parts.
        adapter: a motion adapter that is not in `folder`.
        on_cuda: whether they go to a card, where torch reserves more than the tensors' sizes.
    """

    folder: PipelineFolder
    rules: VideoRules
    dtype: str
    part_dtypes: Mapping[str, str]
    adapter: Part | None = None
    on_cuda: bool = False

    @property
    def part_bytes(self) -> dict[str, int]:
        """Bytes of each part once it is loaded."""
        sizes = self.folder.part_bytes(self.dtype, self.part_dtypes, on_cuda=self.on_cuda)
        # a UNet saved with its motion layers brings them along: the adapter beside it is not loaded
        for name in (*_UNUSED, "motion_adapter"):
            sizes.pop(name, None)
        if self.adapter is not None:
            sizes["unet"] += self.adapter.nbytes(self.dtype, on_cuda=self.on_cuda)
        return sizes

    def vae_dtype(self) -> str:
        """Number format of the VAE."""
        return self.part_dtypes.get("vae", self.dtype)


def find_video_files(path: Path, variant: str, options: VideoLoadOptions, dtype: str) -> VideoFiles:
    """Judge a model by names and headers; nothing is loaded.

    Raises:
        LoadError: no pipeline of a known family, unsafe or damaged. ModelNotDownloaded: a motion adapter's base is not
            here. EngineNotInstalled: a package that this family needs while it generates is missing.
    """
    part_dtypes = {} if options.vae_dtype == "same" else {"vae": options.vae_dtype}
    if is_motion_adapter(path):
        folder = inspect_folder(_base_folder(path, options.base_model), variant, replaced=_UNUSED)
        if folder.class_name != "StableDiffusionPipeline" or folder.part("unet") is None:
            raise LoadError(
                f"{folder.path.name} is a {folder.class_name}; a motion adapter animates Stable Diffusion 1.5.",
                hint="Set base_model to the folder of a Stable Diffusion 1.5 model.",
            )
        files = weight_files(path, variant)
        for file in files:
            read_safetensors(file)
        adapter = Part("motion_adapter", "diffusers", "MotionAdapter", tuple(files), _variant(files[0]), path)
        rules = _rules(folder, "AnimateDiffPipeline", adapter)
        return VideoFiles(folder, rules, dtype, part_dtypes, adapter)
    folder = inspect_folder(path, variant)
    files_found = VideoFiles(folder, _rules(folder, folder.class_name), dtype, part_dtypes)
    if not files_found.rules.from_text:
        check_packages(files_found.rules)
    return files_found


def _rules(folder: PipelineFolder, class_name: str, adapter: Part | None = None) -> VideoRules:
    def config(name: str) -> Mapping[str, Any]:
        if adapter is not None and name == adapter.name:
            return _read(adapter.home / "config.json")
        return folder.config(name) if name else _read(folder.path / "model_index.json")

    return rules_for(class_name, config)


def check_packages(rules: VideoRules) -> None:
    """Refuse before the work what would fail after it.

    Raises:
        EngineNotInstalled: a package that this family's image to video needs while it generates is missing.
    """
    missing = [name for name in rules.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineNotInstalled(
            f"{rules.family} needs {', '.join(missing)} to start from a picture.",
            hint=f"Run: pip install {' '.join(missing)}",
        )


def is_motion_adapter(path: Path) -> bool:
    """Whether a folder holds AnimateDiff's motion layers alone."""
    return (
        not (path / "model_index.json").is_file() and _read(path / "config.json").get("_class_name") == "MotionAdapter"
    )


def _base_folder(adapter: Path, base_model: str) -> Path:
    if not base_model.strip():
        raise LoadError(
            f"{adapter.name} is a motion adapter and needs a Stable Diffusion 1.5 model to animate.",
            hint="Set base_model to its folder, or to the id of a downloaded one.",
        )
    given = Path(base_model).expanduser()
    folder = given if given.is_absolute() else adapter.parent / given
    if not folder.is_dir():
        raise ModelNotDownloaded(
            f"The model {base_model!r} that {adapter.name} animates is not in {adapter.parent}.",
            hint=f"Run: lollms-local models download {base_model} --yes",
        )
    return folder


def _variant(file: Path) -> str:
    middle = file.name.split(".")[1:-1]
    return middle[0].split("-")[0] if middle else ""


def _read(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


# --- loading ------------------------------------------------------------------------------------------------------


def open_video_pipeline(files: VideoFiles) -> Any:
    """The pipeline on the CPU, complete.

    Raises:
        LoadError: the library refuses the files, or tensors are missing. InsufficientMemory: no room.
    """
    if files.adapter is not None:
        return _animate(files, files.adapter)
    left_out = {"motion_adapter": None} if files.folder.part("motion_adapter") is not None else {}
    return load_pipeline(files.folder, files.dtype, part_dtypes=files.part_dtypes, parts=left_out)


def _animate(files: VideoFiles, adapter: Part) -> Any:
    """Stable Diffusion with the adapter's motion layers in its UNet."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    unused = {name: None for name in files.folder.classes if name in _UNUSED}
    base = load_pipeline(files.folder, files.dtype, part_dtypes=files.part_dtypes, parts=unused)
    motion = load_part(files.folder, adapter, files.dtype)
    what = f"The motion adapter {adapter.home.name}"
    with foreign_errors(what, LoadError, "Its base model must be a Stable Diffusion 1.5."):
        pipe = AnimateDiffPipeline(
            vae=base.vae,
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            unet=base.unet,
            motion_adapter=motion,
            # what the motion layers were trained with, as their authors publish it
            scheduler=DDIMScheduler.from_config(
                base.scheduler.config,
                beta_schedule="linear",
                clip_sample=False,
                timestep_spacing="linspace",
                steps_offset=1,
            ),
        )
    pipe.motion_adapter = None  # its layers are in the UNet now
    check_pipeline(pipe, what)
    return pipe
