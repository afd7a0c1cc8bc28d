"""Which files make up a picture model, judged before anything is loaded; and the pipeline they give.

A model is a pipeline's folder, or a single checkpoint with a folder of json files beside it. Its transformer may come
from a file of its own (GGUF or safetensors), its VAE from another folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import EngineNotInstalled, LoadError, UnsupportedRequest
from ..footprint import read_safetensors, safetensors_bytes
from ..modalities.image import ImageLoadOptions
from ._diffusers import (
    DTYPE_WIDTH,
    PipelineFolder,
    check_pipeline,
    inspect_config,
    inspect_folder,
    inspect_part,
    load_part,
    load_pipeline,
)
from ._torch import foreign_errors, quiet, reject_unmaterialised, torch_dtype

__all__ = ["ImageFiles", "find_files", "open_pipeline"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """The files of a picture model.

    Attributes:
        folder: the pipeline's folder, or the one that describes a single checkpoint.
        single: the checkpoint, or None.
        vae: the pipeline folder that holds another VAE to use, or None.
        transformer: file with another transformer to use, or None.
        dropped: parts to leave out.
        part_dtypes: number formats that differ from the rest.
        dtype: of the rest.
        on_cuda: whether they go to a card, where torch reserves more than the tensors' sizes.
        part_bytes: bytes of each part once loaded.
    """

    folder: PipelineFolder
    single: Path | None
    vae: PipelineFolder | None
    transformer: Path | None
    dropped: frozenset[str]
    part_dtypes: Mapping[str, str]
    dtype: str
    on_cuda: bool = False
    part_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def config_vae(self) -> dict[str, Any]:
        """Configuration of the VAE that will be used."""
        return (self.vae or self.folder).config("vae")


def find_files(path: Path, variant: str, options: ImageLoadOptions, dtype: str, *, on_cuda: bool = False) -> ImageFiles:
    """Judge everything that a load would read.

    Raises:
        LoadError: files are damaged, unsafe or do not belong together. UnsupportedRequest: an option does not fit.
    """
    single = _single_checkpoint(path)
    vae = _other_vae(Path(options.vae).expanduser()) if options.vae else None
    transformer = _other_transformer(options.transformer) if options.transformer else None
    dropped = frozenset() if options.safety_checker else frozenset({"safety_checker", "feature_extractor"})
    replaced = dropped | ({"vae"} if vae else set()) | ({"transformer"} if transformer else set())
    if single is not None:
        if transformer is not None:
            raise UnsupportedRequest(
                "A single-file checkpoint takes no other transformer.", hint="Use a pipeline folder."
            )
        folder = inspect_config(_config_folder(single, options.checkpoint_config))
    else:
        folder = inspect_folder(path, variant, replaced=replaced)
    if transformer is not None and "transformer" not in folder.classes:
        raise UnsupportedRequest(
            f"{folder.class_name} has no transformer that {transformer.name} could replace.", hint="Leave it empty."
        )
    files = ImageFiles(folder, single, vae, transformer, dropped, _part_dtypes(folder, options, dtype), dtype, on_cuda)
    if vae is not None:
        _same_latents(folder.config("vae"), vae.config("vae"), vae.path)
    return ImageFiles(**{**vars(files), "part_bytes": _bytes(files)})


def _single_checkpoint(path: Path) -> Path | None:
    """The file, if the model is one file: given itself, or alone in its folder."""
    if path.is_file():
        found = path
    elif path.is_dir() and not (path / "model_index.json").is_file():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            return None
        found = files[0]
    else:
        return None
    if found.suffix != ".safetensors":
        raise LoadError(
            f"{found.name} is not a .safetensors file; other checkpoints can run code and are never loaded.",
            hint="Get the .safetensors file of the same model.",
        )
    read_safetensors(found)
    return found


def _config_folder(single: Path, configured: str) -> Path:
    """The folder that says which pipeline a checkpoint is: configured, named like the file, or "config" beside it."""
    if configured:
        return Path(configured).expanduser()
    for folder in (single.with_suffix(""), single.parent / "config"):
        if (folder / "model_index.json").is_file():
            return folder
    raise LoadError(
        f"{single.name} does not say which pipeline it is.",
        hint=f"Put that pipeline's json and tokenizer files into {single.with_suffix('')}, or name their folder in the "
        'option "checkpoint_config".',
    )


def _other_vae(folder: Path) -> PipelineFolder:
    """A VAE's folder, seen as a pipeline's folder with that one part (the folder itself, or its "vae" below)."""
    home = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    if not (home / "config.json").is_file():
        raise LoadError(f"{folder} holds no VAE: it has no config.json.", hint='Check the option "vae".')
    return inspect_part(home, "vae")


def _same_latents(ours: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> None:
    for key in ("latent_channels", "z_dim"):
        if ours.get(key) != other.get(key):
            raise LoadError(
                f"The VAE in {folder} has {other.get(key)} latent channels and the model {ours.get(key)}.",
                hint="Choose a VAE that was made for this kind of model.",
            )


def _other_transformer(text: str) -> Path:
    file = Path(text).expanduser()
    if not file.is_file() or file.suffix not in (".gguf", ".safetensors"):
        raise LoadError(f"{file} is not a .gguf or .safetensors file.", hint='Check the option "transformer".')
    if file.suffix == ".safetensors":
        read_safetensors(file)
    else:
        import importlib.util

        if importlib.util.find_spec("gguf") is None:
            raise EngineNotInstalled("GGUF transformers need the library gguf.", hint="Run: pip install gguf")
        _check_gguf(file)
    return file


def _check_gguf(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise LoadError(f"{file.name} is not a GGUF file.", hint="Remove it and download it again.")


def _part_dtypes(folder: PipelineFolder, options: ImageLoadOptions, dtype: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in folder.classes:
        wanted = options.vae_dtype if name == "vae" else options.text_encoder_dtype
        if (name == "vae" or name.startswith("text_encoder")) and wanted not in ("same", dtype):
            found[name] = wanted
    return found


def _bytes(files: ImageFiles) -> dict[str, int]:
    width, on_cuda = DTYPE_WIDTH[files.dtype], files.on_cuda
    if files.single is not None:
        found: dict[str, int] = {}
        total = safetensors_bytes(files.single, width, on_cuda=on_cuda)
        entries = read_safetensors(files.single)
        stored = sum(entry.nbytes for entry in entries.values()) or 1
        for name, entry in entries.items():
            group = name.partition(".")[0]
            found[group] = found.get(group, 0) + entry.nbytes * total // stored
    else:
        found = files.folder.part_bytes(files.dtype, files.part_dtypes, on_cuda=on_cuda)
    if files.vae is not None:
        vae_dtype = files.part_dtypes.get("vae", files.dtype)
        found["vae"] = sum(files.vae.part_bytes(vae_dtype, on_cuda=on_cuda).values())
    if files.transformer is not None:
        gguf = files.transformer.suffix == ".gguf"
        found["transformer"] = (
            files.transformer.stat().st_size if gguf else safetensors_bytes(files.transformer, width, on_cuda=on_cuda)
        )
    return found


# --- loading ------------------------------------------------------------------------------------------------------


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
