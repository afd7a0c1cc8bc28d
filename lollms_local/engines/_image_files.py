"""Which files make up a picture model, judged before anything is loaded.

A model is a pipeline's folder, or a single checkpoint with a folder of json files beside it. Its transformer may come
from a file of its own (GGUF or safetensors), its VAE from another folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EngineNotInstalled, LoadError, UnsupportedRequest
from ..footprint import read_safetensors, safetensors_bytes
from ..modalities.image import ImageLoadOptions
from ._diffusers import (
    DTYPE_WIDTH,
    PipelineFolder,
    inspect_config,
    inspect_folder,
    inspect_part,
)

__all__ = ["ImageFiles", "find_files"]

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
