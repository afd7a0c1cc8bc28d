"""Where a pipeline's parts go, and what makes a GPU faster: carries out a `FitPlan`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from ..devices import Device
from ..errors import UnsupportedRequest
from ..fit import FitPlan

__all__ = ["TILE", "check_attention", "place", "smaller_forms", "tune"]

log = logging.getLogger(__name__)

#: longest side of a VAE's tile in pixels, which the plans count on
TILE = 512


def place(pipe: Any, device: Device, plan: FitPlan) -> None:
    """Put the parts where the plan says.

    "device" moves all of them; "model_offload" moves one network at a time to the device; "group_offload" one block at
    a time, the rest waits in RAM; "cpu" leaves everything in RAM and computes there.
    """
    import torch

    vae: Any = getattr(pipe, "vae", None)
    if plan.vae_slicing and hasattr(vae, "enable_slicing"):
        vae.enable_slicing()
    if plan.vae_tiling and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()
        _limit_tiles(vae)
    if plan.placement == "device" and device.kind != "cpu":
        pipe.to(device.torch_name)
    elif plan.placement == "model_offload":
        pipe.enable_model_cpu_offload(device=torch.device(device.torch_name))
    elif plan.placement == "group_offload":
        pipe.enable_group_offload(
            onload_device=torch.device(device.torch_name),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=device.kind == "cuda",
        )


def _limit_tiles(vae: Any) -> None:
    """A KL VAE's tiles are as large as the pictures it was trained on: 1024 for SDXL, so no tiles at all."""
    side = getattr(vae, "tile_sample_min_size", 0)
    if side > TILE:
        vae.tile_latent_min_size = vae.tile_latent_min_size * TILE // side
        vae.tile_sample_min_size = TILE


def smaller_forms(options: Any) -> Iterator[tuple[Any, str]]:
    """Load options of a pipeline that need less memory, the fastest first, and what they change; see `Shrinkable`."""
    said = []
    if options.vae_tiling != "on":
        said.append("vae_tiling=on")
        options = options.model_copy(update={"vae_tiling": "on"})
        yield options, " and ".join(said)
    offloads = ("model_offload", "group_offload")
    if options.placement in ("auto", "device", *offloads):
        for placement in offloads[offloads.index(options.placement) + 1 if options.placement in offloads else 0 :]:
            yield options.model_copy(update={"placement": placement}), " and ".join([*said, f"placement={placement}"])


def check_attention(name: str) -> None:
    """Refuse an attention backend that is not installed, before anything is loaded.

    Raises:
        UnsupportedRequest: diffusers does not know it, or its library is missing.
    """
    if name in ("", "auto"):
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

    try:
        _check_attention_backend_requirements(AttentionBackendName(name))
    except (ValueError, RuntimeError, ImportError) as exc:
        known = ", ".join(str(backend.value) for backend in AttentionBackendName)
        raise UnsupportedRequest(
            f"The attention backend {name!r} cannot be used here.", hint=f'Use "auto", or one of: {known}.'
        ) from exc


def tune(
    pipe: Any,
    device: Device,
    *,
    attention: str = "auto",
    channels_last: bool = False,
    tf32: bool = True,
    compile_blocks: bool = False,
    step_cache: float = 0.0,
) -> list[str]:
    """Make it faster where that loses nothing; what costs quality or start-up time is off unless asked for.

    Args:
        pipe: a placed pipeline.
        device: where it runs.
        attention: an attention backend of diffusers; "auto" = torch's own, which picks flash attention by itself.
        channels_last: store convolution weights pixel by pixel (GPU only). Off unless asked for: an H100 made SDXL in
            bfloat16 1.5 times slower with it (benchmarks/RESULTS.md); older cards in float16 may gain.
        tf32: let float32 products use TF32 on NVIDIA cards (relative error about 1e-3).
        compile_blocks: compile each kind of block once (the first picture takes minutes).
        step_cache: skip the rest of a pass if the first block's output changed by less than this; 0 = off. It changes
            details of the picture, the more the higher.

    Returns:
        What was switched on, in words.
    """
    import torch

    done = []
    denoiser: Any = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if device.kind == "cuda":
        if tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            done.append("TF32")
        if channels_last:
            for part in (getattr(pipe, "unet", None), getattr(pipe, "vae", None)):
                if part is not None:
                    part.to(memory_format=torch.channels_last)
            done.append("channels-last")
    if attention not in ("", "auto") and denoiser is not None:
        denoiser.set_attention_backend(attention)
        done.append(f"attention {attention}")
    if step_cache > 0:
        _cache_steps(denoiser, step_cache)
        done.append(f"first-block cache at {step_cache:g}")
    if compile_blocks:
        _compile(denoiser)
        done.append("compiled blocks")
    return done


def _cache_steps(denoiser: Any, threshold: float) -> None:
    from diffusers import FirstBlockCacheConfig

    if not hasattr(denoiser, "enable_cache"):
        raise UnsupportedRequest(
            f"Step caching does not work with {type(denoiser).__name__}.", hint="Set step_cache to 0 for this model."
        )
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))


def _compile(denoiser: Any) -> None:
    if getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks(dynamic=True)
    else:
        denoiser.compile(dynamic=True)
