"""Text to image: options, results, and what every engine of this modality offers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from .. import __version__
from ..errors import MediaError, UnsupportedRequest
from ..media import decode_image, encode_png, read_png_metadata
from ..options import Options, auto, choice
from .base import Control, LoadOptions

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "EditInput",
    "GeneratedImage",
    "ImageLoadOptions",
    "ImageModel",
    "ImageOptions",
    "ImageResult",
    "Lora",
    "parse_lora",
    "parse_size",
    "png_bytes",
    "read_edit_input",
    "read_recipe",
]

Switch = Literal["auto", "on", "off"]
PartDType = Literal["same", "float32", "bfloat16", "float16"]

#: key of the PNG text entry that holds everything needed to make the picture again
RECIPE_KEY = "lollms_local"
#: no model in sight makes more in one go; a typing error of one digit must not take the machine down
MAX_SIDE = 8192


class ImageLoadOptions(LoadOptions):
    """Options that shape a loaded picture model."""

    placement: Literal["auto", "device", "model_offload", "group_offload", "cpu"] = choice(
        "auto", "Where its parts go: auto | device | model_offload | group_offload | cpu. auto = fastest that fits."
    )
    vae_slicing: Switch = choice("auto", "Decode a batch one picture at a time: auto | on | off.")
    vae_tiling: Switch = choice("auto", "Decode in tiles, for large pictures in little memory: auto | on | off.")
    vae_dtype: PartDType = choice("same", "Number format of the VAE: same | float32 | bfloat16 | float16.")
    text_encoder_dtype: PartDType = choice("same", "Number format of the text encoders: same | float32 | bfloat16.")
    vae: str = choice("", "Folder of a VAE to use instead of the model's own; empty = its own.")
    transformer: str = choice("", "A .gguf or .safetensors file to use as the transformer; empty = the model's own.")
    checkpoint_config: str = choice(
        "", "For a single-file checkpoint: folder with its pipeline's json and tokenizer files."
    )
    safety_checker: bool = choice(True, "Keep the model's own safety checker, if it has one (it blackens pictures).")
    attention: str = choice(
        "auto", "Attention backend: auto | native | flash | sage | xformers ... auto = torch's own."
    )
    channels_last: bool = choice(
        False, "GPU: store convolution weights pixel by pixel; older cards may gain, an H100 lost a third of its speed."
    )
    tf32: bool = choice(True, "NVIDIA: let float32 products use TF32.")
    compile: bool = choice(False, "Compile the repeated blocks: faster steps, minutes for the first picture.")
    step_cache: float = choice(
        0.0, "Skip passes that change less than this (0.05 to 0.15); 0 = off. Costs detail.", ge=0
    )


class ImageOptions(Options):
    """Options of one call. Automatic values leave the choice to the model's catalogue entry, then to the pipeline."""

    aliases: ClassVar[Mapping[str, str]] = {
        "num_inference_steps": "steps",
        "inference_steps": "steps",
        "guidance_scale": "guidance",
        "cfg_scale": "guidance",
        "cfg": "guidance",
        "sampler": "scheduler",
        "scheduler_name": "scheduler",
        "sampler_name": "scheduler",
        "num_images": "n",
        "n_images": "n",
        "num_images_per_prompt": "n",
        "denoising_strength": "strength",
        "lora": "loras",
    }

    width: int = auto(0, "Width in pixels; 0 = the model's own (for an edit: the picture's).", ge=0, le=MAX_SIDE)
    height: int = auto(0, "Height in pixels; 0 = the model's own (for an edit: the picture's).", ge=0, le=MAX_SIDE)
    steps: int = auto(0, "Denoising steps; 0 = what suits the model.", ge=0, le=1000)
    guidance: float = auto(-1.0, "Guidance scale; 0 = none, -1 = what suits the model.", ge=-1)
    true_cfg: float = auto(
        -1.0, "FLUX: real guidance, which a negative prompt needs (1 = off); -1 = the model's.", ge=-1
    )
    negative_prompt: str = auto("", "What the picture should not show.")
    seed: int = auto(-1, "Seed; the same seed gives the same picture. -1 = random.", ge=-1)
    n: int = choice(1, "How many pictures, with seeds seed, seed+1, ...", ge=1, le=64)
    batch_size: int = choice(
        1, "Pictures made at once: faster on a GPU, but not equal to the bit to one at a time.", ge=1
    )
    scheduler: str = auto(
        "", "Sampler: euler | euler_a | dpmpp_2m | dpmpp_2m_karras | ddim | unipc ...; empty = its own."
    )
    strength: float = auto(-1.0, "Edits: how far from the source, 0 to 1; -1 = the pipeline's own.", ge=-1, le=1)
    clip_skip: int = auto(0, "Skip so many last layers of the CLIP text encoder, where there is one; 0 = none.", ge=0)
    loras: tuple[str, ...] = auto(
        (), 'LoRA files with weights, e.g. ["style.safetensors:0.8"]; names in <models>/loras.'
    )
    preview_every: int = choice(
        0, "Hand a small preview to the progress function every so many steps; 0 = never.", ge=0
    )

    @property
    def shape(self) -> str | None:
        """Pixels, pictures at once, whether a second pass guides each step, and LoRAs; None without a size."""
        if not (self.width and self.height):
            return None
        guided = "usual" if self.guidance < 0 else "guided" if max(self.guidance, self.true_cfg) > 1 else "plain"
        return f"{self.width}x{self.height}x{min(self.n, self.batch_size)} {guided} {len(self.loras)}"


@dataclass(frozen=True)
class GeneratedImage:
    """One picture: uint8 `pixels` [height, width, 3], and the `seed` that makes it again."""

    pixels: Any
    seed: int


@dataclass(frozen=True)
class ImageResult:
    """What a call made.

    Attributes:
        images: in the order of their seeds.
        recipe: everything that shaped them, JSON-able: what was asked and what was chosen.
        notes: sentences for the user: a size that was rounded, a prompt that was too long.
    """

    images: tuple[GeneratedImage, ...]
    recipe: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EditInput:
    """Decoded sources of an edit: RGB `images`, and a `mask` ("L", 255 = change) of the first one's size, or None."""

    images: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Lora:
    """A LoRA file and its weight."""

    path: Path
    weight: float = 1.0


@runtime_checkable
class ImageModel(Protocol):
    """A loaded picture model."""

    def generate(
        self,
        prompt: str,
        options: ImageOptions,
        control: Control,
        *,
        edit: EditInput = ...,
        loras: Sequence[Lora] = ...,
    ) -> ImageResult:
        """Make pictures from text, or from text and sources (image to image; with a mask: inpainting).

        Raises:
            UnsupportedRequest: this model cannot do that. GenerationError, InsufficientMemory, Cancelled.
        """
        ...

    def tasks(self) -> tuple[str, ...]:
        """Which of "text", "image", "inpaint" it can do."""
        ...


# --- what callers hand over -----------------------------------------------------------------------------------------


def parse_size(size: str) -> tuple[int, int]:
    """Width and height of "512x768"; (0, 0) for "", "auto" and the like.

    Raises:
        UnsupportedRequest: it is neither.
    """
    text = str(size).strip().lower()
    if text in ("", "auto", "none", "default"):
        return 0, 0
    match = re.fullmatch(r"(\d{1,5})\s*[x×*,]\s*(\d{1,5})", text)
    if match is None:
        raise UnsupportedRequest(f"The size {size!r} is not valid.", hint='Write it like "512x768", width first.')
    return int(match[1]), int(match[2])


def parse_lora(text: str, folder: Path) -> Lora:
    """Read "name.safetensors:0.8"; a name without a path is looked up in `folder`, with or without the suffix.

    Raises:
        UnsupportedRequest: there is no such file, or it is not a .safetensors file.
    """
    name, colon, number = str(text).strip().rpartition(":")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:
        name, weight = f"{name}:{number}", 1.0  # a drive letter, not a weight
    name = name if colon else number
    for candidate in (Path(name).expanduser(), folder / name, folder / f"{name}.safetensors"):
        if candidate.is_file() and (candidate.is_absolute() or candidate.parent == folder):
            if candidate.suffix != ".safetensors":
                raise UnsupportedRequest(
                    f"The LoRA {candidate.name} is not a .safetensors file.", hint="Convert it first."
                )
            return Lora(candidate.resolve(), weight)
    raise UnsupportedRequest(f"There is no LoRA {name!r}.", hint=f"Put the .safetensors file into {folder}.")


def read_edit_input(images: Any, mask: Any = None) -> EditInput:
    """Decode what a caller hands over for an edit; nothing is loaded yet.

    Args:
        images: one picture or a list of them, each bytes, base64, data URL, path or PIL image; None or [] = none.
        mask: a picture of the first one's size, or None. White = change. If it is transparent in places and opaque in
            others, the transparent places are what changes.

    Raises:
        MediaError: one cannot be decoded, there is a mask without a picture, or its size differs.
    """
    listed = list(images) if isinstance(images, (list, tuple)) else [] if images is None or images == "" else [images]
    decoded = tuple(_opaque(decode_image(source)) for source in listed)
    if mask is None or (isinstance(mask, str) and not mask.strip()):
        return EditInput(decoded)
    if not decoded:
        raise MediaError("There is a mask but no picture to edit.", hint="Give the picture as well.")
    drawn = _mask(decode_image(mask))
    if drawn.size != decoded[0].size:
        raise MediaError(
            f"The mask is {drawn.width}x{drawn.height} and the picture {decoded[0].width}x{decoded[0].height}.",
            hint="Give a mask of the picture's size.",
        )
    return EditInput(decoded, drawn)


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts on white."""
    from PIL import Image as Pil

    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Pil.alpha_composite(Pil.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _mask(image: Image.Image) -> Image.Image:
    if "A" in image.getbands():
        low, high = image.getchannel("A").getextrema()
        if low != high:
            return image.getchannel("A").point(lambda alpha: 255 if alpha < 128 else 0)
    return image.convert("L").point(lambda value: 255 if value > 127 else 0)


# --- the recipe in a PNG --------------------------------------------------------------------------------------------


def png_bytes(result: ImageResult, index: int = 0) -> bytes:
    """A picture as PNG, with what is needed to make it again."""
    image = result.images[index]
    recipe = {**result.recipe, "seed": image.seed, "n": 1, "version": __version__}
    shown = ("prompt", "negative_prompt", "seed", "steps", "guidance", "scheduler", "model")
    entries = {name: str(recipe[name]) for name in shown if recipe.get(name) not in (None, "")}
    return encode_png(
        image.pixels, {**entries, "Software": f"lollms_local {__version__}", RECIPE_KEY: json.dumps(recipe)}
    )


@dataclass(frozen=True)
class Recipe:
    """What a PNG says about its making: the `prompt`, the `model`, and the call's options as a mapping."""

    prompt: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    edited: bool = False


def read_recipe(png: bytes) -> Recipe:
    """The recipe in a PNG that we wrote.

    Raises:
        MediaError: it is no PNG, or has no recipe.
    """
    text = read_png_metadata(png).get(RECIPE_KEY, "")
    try:
        recipe = json.loads(text)
        prompt, model = str(recipe["prompt"]), str(recipe["model"])
    except (ValueError, KeyError, TypeError) as exc:
        raise MediaError(
            "This PNG does not say how it was made.",
            hint="Only pictures written by lollms-local, unchanged since, can.",
        ) from exc
    options = {name: value for name, value in recipe.items() if name in ImageOptions.model_fields}
    return Recipe(prompt, model, options, bool(recipe.get("sources")))
