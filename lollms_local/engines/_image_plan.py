"""How much a picture job adds to a model's weights, from the configurations of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fit import Workspace
from ._diffusers import DTYPE_WIDTH
from ._diffusion_place import TILE
from ._image_files import ImageFiles

__all__ = ["image_workspace"]

#: values per pixel and channel of the two last levels that live at once in a KL VAE's decoder; measured, see the tests
_DECODER_COPIES = 3.0
#: values per token and channel that live at once in a denoiser's pass, skip connections and feed-forward included
_DENOISER_COPIES = 24
#: what a job takes of RAM over these sums: large blocks share places, but small ones leave holes in the heap that the
#: large ones cannot use, up to half of the weights' size as every layer converts its own. Chosen by six runs of a model
#: of 80 million parameters (float32 and bfloat16; 256, 512 and 768 pixels): within 9 %. The holes are capped at what
#: was seen, as the largest layers' blocks have pages of their own
_IN_RAM, _HOLES, _MOST_HOLES = 0.8, 0.5, 140 << 20
#: runs twice per step, once with and once without the prompt, in one batch
_GUIDED = 2


def image_workspace(
    files: ImageFiles, width: int, height: int, batch_size: int = 1, *, in_ram: bool = False
) -> Workspace:
    """Activations of a job.

    Args:
        files: the model.
        width, height: of the pictures, pixels.
        batch_size: pictures at once.
        in_ram: on a CPU, with what the heap adds and saves.

    Returns:
        Bytes of the denoiser's pass and of the three ways to decode.
    """
    width_bytes = DTYPE_WIDTH[files.part_dtypes.get("vae", files.dtype)]
    pixels = width * height
    per_pixel = _decoder_channels(files.config_vae) * _DECODER_COPIES * width_bytes
    tile = min(pixels, TILE * TILE)
    holes = min(int(_HOLES * sum(files.part_bytes.values())), _MOST_HOLES)

    def taken(count: float) -> int:
        return int(_IN_RAM * count) + holes if in_ram else int(count)

    return Workspace(
        denoise_bytes=taken(_denoise_bytes(files, pixels) * batch_size),
        decode_bytes=taken(per_pixel * pixels * batch_size),
        decode_sliced_bytes=taken(per_pixel * pixels),
        decode_tiled_bytes=taken(per_pixel * tile) + pixels * 3 * 4,
    )


def _decoder_channels(config: Mapping[str, Any]) -> int:
    """Channels of the decoder's two levels at full resolution: what enters the last block and what it makes."""
    widths = config.get("block_out_channels")
    if isinstance(widths, list) and widths:
        return int(widths[0]) + int(widths[min(1, len(widths) - 1)])
    base, factors = int(config.get("base_dim", 96)), config.get("dim_mult") or [1, 2]
    return int(base * (factors[0] + factors[min(1, len(factors) - 1)]))


def vae_scale(config: Mapping[str, Any]) -> int:
    """Pixels per latent, a side."""
    widths = config.get("block_out_channels")
    if isinstance(widths, list) and widths:
        return int(2 ** (len(widths) - 1))
    return int(2 ** len(config.get("temperal_downsample") or [1, 1, 1]))


def _denoise_bytes(files: ImageFiles, pixels: int) -> int:
    scale = vae_scale(files.config_vae)
    latents = pixels // (scale * scale)
    number = DTYPE_WIDTH[files.dtype]
    unet = files.folder.config("unet")
    if unet:
        channels = int((unet.get("block_out_channels") or [320])[0])
        return latents * channels * _DENOISER_COPIES * number * _GUIDED
    config = files.folder.config("transformer")
    heads, size = int(config.get("num_attention_heads") or 24), int(config.get("attention_head_dim") or 128)
    hidden = int(config.get("dim") or heads * size)
    tokens = latents // 4 + 512  # every transformer in sight folds 2x2 latents into a token; 512 tokens of text
    return tokens * hidden * _DENOISER_COPIES * number * _GUIDED
