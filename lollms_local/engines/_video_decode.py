"""The last part of a film: how its VAE decodes without its memory growing with the film, and frames as bytes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import GenerationError
from ..fit import Workspace
from ..media import to_uint8
from ._video_families import VideoRules

__all__ = [
    "DecodeMode",
    "choose_decoding",
    "decode_bytes",
    "decoder_passes",
    "film_workspace",
    "frames_as_bytes",
    "set_up",
]

#: "whole" = as the pipeline does by itself, "chunks" = a few frames at a time, "tiles" = those in tiles
DecodeMode = Literal["whole", "chunks", "tiles"]
_MODES: tuple[DecodeMode, ...] = ("whole", "chunks", "tiles")

#: side of a tile in pixels, about: each VAE has its own
_TILE = 384
#: frames that AnimateDiff decodes at once by itself
_BATCH = 16


def decode_bytes(rules: VideoRules, width: int, height: int, frames: int, number_bytes: int, mode: DecodeMode) -> int:
    """Activations while the VAE decodes, without the finished frames.

    Args:
        rules: of the model.
        width, height, frames: of the film that is decoded.
        number_bytes: of a number of the VAE.
        mode: how it works.
    """
    area = width * height
    if mode == "tiles":
        area = min(area, _TILE * _TILE)
    at_once = _frames_at_once(rules, frames, mode)
    return int(area * at_once * rules.decoder_channels * rules.decoder_copies * number_bytes)


def _frames_at_once(rules: VideoRules, frames: int, mode: DecodeMode) -> int:
    if rules.decoding == "always_chunks" or mode != "whole":
        return min(frames, rules.frames_per_pass)
    return min(frames, _BATCH) if rules.decoding == "batch" else frames


def film_bytes(width: int, height: int, frames: int, number_bytes: int) -> int:
    """The finished film: as the VAE gives it, joined once, and as bytes."""
    return width * height * frames * 3 * (2 * number_bytes + 1)


def film_workspace(rules: VideoRules, width: int, height: int, frames: int, denoiser: int, vae: int) -> Workspace:
    """Activations of a film, for the fit plan.

    Args:
        rules: of the model.
        width, height, frames: of the film.
        denoiser, vae: bytes per number of the two.
    """
    tokens = max(1, width * height * frames // rules.token_pixels)
    film = film_bytes(width, height, frames, vae)
    whole, chunks, tiles = (decode_bytes(rules, width, height, frames, vae, mode) + film for mode in _MODES)
    denoise = tokens * rules.denoiser_channels * rules.denoiser_copies * denoiser
    return Workspace(denoise, whole, chunks, tiles)


def choose_decoding(
    rules: VideoRules,
    width: int,
    height: int,
    frames: int,
    number_bytes: int,
    room_bytes: int,
    *,
    chunks: str,
    tiling: str,
) -> DecodeMode:
    """The first way that fits, in the order whole, chunks, tiles; the last if none does.

    Args:
        room_bytes: for activations.
        chunks, tiling: "on" and "off" force; "auto" leaves it to the room.
    """
    allowed = [mode for mode in _MODES if _allowed(mode, chunks, tiling)]
    fitting = (m for m in allowed if decode_bytes(rules, width, height, frames, number_bytes, m) <= room_bytes)
    return next(fitting, allowed[-1])


def _allowed(mode: DecodeMode, chunks: str, tiling: str) -> bool:
    if tiling == "on":
        return mode == "tiles"
    if mode == "tiles":
        return tiling == "auto" and chunks != "off"
    return (mode == "chunks") if chunks == "on" else not (mode == "chunks" and chunks == "off")


def set_up(pipe: Any, rules: VideoRules, mode: DecodeMode) -> Mapping[str, Any]:
    """Give a job's pipe a VAE that works in this mode: a shell of its own on the shared weights.

    Returns:
        Arguments for the pipeline's call.
    """
    # nn.Module keeps parameters and children in dictionaries: a shallow copy shares them and owns the switches
    vae = copy.copy(pipe.vae)
    vars(pipe)["vae"] = vae
    if mode != "whole":
        if rules.decoding == "framewise":
            vae.use_framewise_decoding = True
        elif rules.decoding == "slices":
            vae.enable_slicing()
    if mode == "tiles":
        vae.enable_tiling()
    return {"decode_chunk_size": 1 if mode != "whole" else _BATCH} if rules.decoding == "batch" else {}


def decoder_passes(rules: VideoRules, frames: int, mode: DecodeMode) -> int:
    """Passes of the VAE's decoder for a film, for a progress bar; 0 = not known."""
    steps = (frames - 1) // rules.frame_step
    if mode == "tiles":
        return 0
    if rules.decoding == "always_chunks":  # Wan's first pass makes one frame, CogVideoX's the first one besides
        return steps + 1 if rules.frames_per_pass == rules.frame_step else max(1, steps)
    if rules.decoding == "framewise":
        return steps + 1 if mode == "chunks" else 1
    return math.ceil(frames / _frames_at_once(rules, frames, mode))


def frames_as_bytes(pipe: Any, keep_frames: int) -> None:
    """Make a job's pipe hand out uint8 frames [1, frames, height, width, 3], converted one by one.

    The pipelines turn the whole film into float32 first, three times over; each frame by itself gives the same values.
    """
    processor = copy.copy(pipe.video_processor)

    def postprocess(video: Any, output_type: str = "np", **kwargs: Any) -> Any:
        import numpy as np

        frames = video[0].permute(1, 0, 2, 3)[:keep_frames]  # [channels, frames, ...] -> [frames, channels, ...]
        film = np.empty((len(frames), *frames.shape[2:], 3), dtype=np.uint8)
        for number in range(len(frames)):
            pixels = processor.postprocess(frames[number : number + 1], output_type="np")[0]
            if not np.isfinite(pixels).all():
                raise GenerationError(
                    "The model made pixels that are not numbers.", hint='Use vae_dtype="float32" or dtype="float32".'
                )
            film[number] = to_uint8(pixels)
        return film[None]

    processor.postprocess_video = postprocess
    pipe.video_processor = processor
