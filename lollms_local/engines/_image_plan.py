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
#: runs twice per step, once with and once without the prompt, in one batch
_GUIDED = 2


def image_workspace(files: ImageFiles, width: int, height: int, batch_size: int = 1) -> Workspace:
    """Activations of a job.

    Args:
        files: the model.
        width, height: of the pictures, pixels.
        batch_size: pictures at once.

    Returns:
        Bytes of the denoiser's pass and of the three ways to decode.
    """
    width_bytes = DTYPE_WIDTH[files.part_dtypes.get("vae", files.dtype)]
    pixels = width * height
    per_pixel = _decoder_channels(files.config_vae) * _DECODER_COPIES * width_bytes
    tile = min(pixels, TILE * TILE)
    return Workspace(
        denoise_bytes=_denoise_bytes(files, pixels) * batch_size,
        decode_bytes=int(per_pixel * pixels * batch_size),
        decode_sliced_bytes=int(per_pixel * pixels),
        decode_tiled_bytes=int(per_pixel * tile) + pixels * 3 * 4,
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
