"""Sizes a pipeline can make, sources fitted to them and put back, cheap previews."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..modalities.image import EditInput

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Canvas", "LatentPreview", "edit_canvas", "native_size", "size_step", "text_canvas"]

#: an edit of a larger picture is worked on at this many times the model's native area and scaled back
MAX_EDIT_AREA = 2.25


@dataclass(frozen=True)
class Canvas:
    """The size a job works at, and how its picture becomes the one that was asked for.

    Attributes:
        width, height: what the pipeline is asked for; multiples of what it can make.
        content: (width, height) inside the canvas that holds the picture; the rest is padding.
        final: (width, height) of the result.
        images: sources, fitted to the canvas.
        mask: "L", fitted to the canvas, or None.
        original: the first source at its final size, for pixels that must not change.
        original_mask: the mask at the final size.
        notes: what was changed, for the user.
    """

    width: int
    height: int
    content: tuple[int, int]
    final: tuple[int, int]
    images: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None
    original: Image.Image | None = None
    original_mask: Image.Image | None = None
    notes: tuple[str, ...] = ()

    def finish(self, image: Image.Image) -> Any:
        """uint8 [height, width, 3]: padding cut off, size restored, every pixel outside the mask the source's own."""
        import numpy as np
        from PIL import Image as Pil

        image = image.convert("RGB")
        if image.size != (self.width, self.height):  # pipelines with sizes of their own
            image = image.resize((self.width, self.height), Pil.Resampling.LANCZOS)
        image = image.crop((0, 0, *self.content))
        if image.size != self.final:
            image = image.resize(self.final, Pil.Resampling.LANCZOS)
        if self.original is None or self.original_mask is None:
            return np.asarray(image)
        changed = np.asarray(self.original_mask)[..., None] > 127
        return np.where(changed, np.asarray(image), np.asarray(self.original)).astype(np.uint8)


def size_step(pipe: Any) -> int:
    """Widths and heights must be multiples of this: the VAE's scale times the denoiser's patch."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    patch = getattr(getattr(getattr(pipe, "transformer", None), "config", None), "patch_size", 1)
    processor = getattr(getattr(pipe, "image_processor", None), "config", None)
    processed = int(getattr(processor, "vae_scale_factor", scale) or scale)
    # families that fold 2x2 latents into a token have a processor that says so; SD3 says it by its patch only
    # and the pipelines of the SD family refuse what is no multiple of 8, whatever their parts could do
    return math.lcm(8, processed, scale * patch if isinstance(patch, int) else scale)


def native_size(pipe: Any) -> tuple[int, int]:
    """Width and height the model was made for."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    sample = getattr(pipe, "default_sample_size", None)
    if sample is None:
        config = getattr(getattr(pipe, "unet", None), "config", None)
        sample = getattr(config, "sample_size", None) or 1024 // scale
    if isinstance(sample, (list, tuple)):
        return int(sample[1]) * scale, int(sample[0]) * scale
    return int(sample) * scale, int(sample) * scale


def _nearest(side: int, step: int) -> int:
    return max(step, round(side / step) * step)


def _upwards(side: int, step: int) -> int:
    return max(step, math.ceil(side / step) * step)


def text_canvas(pipe: Any, width: int, height: int) -> Canvas:
    """The canvas for text to image; 0 = the model's own size; other sizes are rounded to what it can make."""
    own = native_size(pipe)
    asked = (width or height or own[0], height or width or own[1])
    step = size_step(pipe)
    made = (_nearest(asked[0], step), _nearest(asked[1], step))
    notes = () if made == asked else (_rounded(asked, made, step),)
    return Canvas(*made, content=made, final=made, notes=notes)


def _rounded(asked: tuple[int, int], made: tuple[int, int], step: int) -> str:
    return f"{asked[0]}x{asked[1]} became {made[0]}x{made[1]}: this model makes sizes in steps of {step} pixels."


def edit_canvas(pipe: Any, edit: EditInput, width: int, height: int) -> Canvas:
    """The canvas for an edit; 0 = the source keeps its size to the pixel.

    A size that the model cannot make is padded and cut again; a picture much larger than the model's own size is worked
    on smaller and scaled back, so that a photo does not fill the memory. With a size given, the source is cut and
    scaled to cover it.
    """
    from PIL import Image as Pil
    from PIL import ImageOps

    source, mask, notes = edit.images[0], edit.mask, []
    step = size_step(pipe)
    if width or height:
        asked = (width or height, height or width)
        final = (_nearest(asked[0], step), _nearest(asked[1], step))
        if final != asked:
            notes.append(_rounded(asked, final, step))
        if source.size != final:
            source = ImageOps.fit(source, final, Pil.Resampling.LANCZOS)
            mask = ImageOps.fit(mask, final, Pil.Resampling.NEAREST) if mask is not None else None
    else:
        final = source.size
    content = _work_size(pipe, final)
    if content != final:
        notes.append(f"Worked on at {content[0]}x{content[1]} and scaled back to {final[0]}x{final[1]}.")
    canvas = (_upwards(content[0], step), _upwards(content[1], step))
    fitted = _padded(source.resize(content, Pil.Resampling.LANCZOS) if content != final else source, canvas)
    fitted_mask = None
    if mask is not None:
        fitted_mask = _padded(mask.resize(content, Pil.Resampling.NEAREST) if content != final else mask, canvas)
    return Canvas(
        *canvas,
        content=content,
        final=final,
        images=(fitted, *edit.images[1:]),
        mask=fitted_mask,
        original=source,
        original_mask=mask,
        notes=tuple(notes),
    )


def _work_size(pipe: Any, final: tuple[int, int]) -> tuple[int, int]:
    own = native_size(pipe)
    most = own[0] * own[1] * MAX_EDIT_AREA
    shrink = math.sqrt(most / (final[0] * final[1]))
    return final if shrink >= 1 else (max(1, round(final[0] * shrink)), max(1, round(final[1] * shrink)))


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at the top left, its last row and column repeated: a black border would bleed into the picture."""
    if image.size == size:
        return image
    import numpy as np
    from PIL import Image as Pil

    pixels = np.asarray(image)
    rows, columns = size[1] - image.height, size[0] - image.width
    return Pil.fromarray(np.pad(pixels, [(0, rows), (0, columns)] + [(0, 0)] * (pixels.ndim - 2), mode="edge"))


class LatentPreview:
    """Small pictures straight from latents, by a linear map learned once from the model's own VAE.

    A VAE is close to linear in the mean colour of its cells: one decode of 8x8 random latents and a least-squares fit
    give the map for any model, with no table of constants per family.

    Args:
        pipe: a loaded pipeline with a `vae`.
    """

    def __init__(self, pipe: Any) -> None:
        import numpy as np
        import torch

        vae = pipe.vae
        channels = int(getattr(vae.config, "latent_channels", 0) or getattr(vae.config, "z_dim", 4))
        weight = next(vae.parameters())
        random = torch.Generator("cpu").manual_seed(0)
        self.five_axes = hasattr(vae.config, "z_dim")
        shape = (1, channels, *((1,) if self.five_axes else ()), 8, 8)
        latents = torch.randn(shape, generator=random)
        with torch.no_grad():
            decoded = vae.decode(self._unscaled(vae, latents).to(weight.device, weight.dtype), return_dict=False)[0]
        colours = decoded.float().cpu()[:, :, 0] if self.five_axes else decoded.float().cpu()
        cells = torch.nn.functional.adaptive_avg_pool2d(colours, 8)[0].reshape(3, -1).T.numpy()
        known = latents.reshape(channels, -1).T.numpy()
        solved = np.linalg.lstsq(np.hstack([known, np.ones((len(known), 1))]), cells, rcond=None)[0]
        self.factors, self.offset = solved[:-1], solved[-1]

    @staticmethod
    def _unscaled(vae: Any, latents: Any) -> Any:
        """Latents as the pipeline holds them -> as the VAE decodes them."""
        import torch

        if hasattr(vae.config, "latents_mean") and vae.config.latents_mean is not None and hasattr(vae.config, "z_dim"):
            shape = (1, -1, 1, 1, 1)
            return latents * torch.tensor(vae.config.latents_std).view(shape) + torch.tensor(
                vae.config.latents_mean
            ).view(shape)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return latents / getattr(vae.config, "scaling_factor", 1.0) + shift

    def __call__(self, latents: Any, width: int, height: int) -> Any:
        """uint8 [rows, columns, 3] of the first picture; None for latents of a shape that is not known.

        Args:
            latents: [batch, channels, rows, columns], with a frame axis, or packed as [batch, tokens, 4 * channels].
            width, height: of the canvas, to unpack tokens.
        """
        import numpy as np

        first = latents[0].detach().float().cpu().numpy()
        channels = len(self.factors)
        if first.ndim == 2 and first.shape[1] == 4 * channels:
            columns = round(math.sqrt(first.shape[0] * width / height))
            rows = first.shape[0] // max(1, columns)
            if rows * columns != first.shape[0]:
                return None
            first = first.reshape(rows, columns, channels, 2, 2).transpose(2, 0, 3, 1, 4)
            first = first.reshape(channels, rows * 2, columns * 2)
        elif first.ndim == 4:
            first = first[:, 0]
        if first.ndim != 3 or first.shape[0] != channels:
            return None
        picture = np.tensordot(first, self.factors, axes=([0], [0])) + self.offset
        return (np.clip(picture / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)
