"""Tiny picture pipelines of each family with random weights: well under a second to build, a few MB on disk.

`save(FAMILIES["sd"](), folder)` gives a folder that the engine loads like any downloaded one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import diffusion_parts as parts


def _unet(cross_attention_dim: int = 32, in_channels: int = 4, **extra: Any) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(10)
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=32,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        norm_num_groups=4,
        **extra,
    ).eval()


def stable_diffusion(*, in_channels: int = 4) -> Any:
    """SD 1.x with its PNDM scheduler; `in_channels=9` is the inpainting model."""
    from diffusers import PNDMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline

    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    )
    cls = StableDiffusionInpaintPipeline if in_channels == 9 else StableDiffusionPipeline
    return cls(
        unet=_unet(attention_head_dim=2, in_channels=in_channels),
        vae=parts.kl_vae(levels=2),
        text_encoder=parts.clip_text_encoder(),
        tokenizer=parts.clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """SDXL: two text encoders, size conditioning, Euler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        unet=_unet(
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        vae=parts.kl_vae(levels=2),
        text_encoder=parts.clip_text_encoder(),
        text_encoder_2=parts.clip_text_encoder(with_projection=True),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
    )


def sd3(*, latent_channels: int = 16) -> Any:
    """SD3: three text encoders, a joint transformer, flow matching (its inpainting wants 16 latent channels)."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(11)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=latent_channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=latent_channels,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=parts.kl_vae(latent_channels=latent_channels, shift=0.0),
        text_encoder=parts.clip_text_encoder(with_projection=True, hidden_size=16),
        text_encoder_2=parts.clip_text_encoder(with_projection=True, hidden_size=16),
        text_encoder_3=parts.t5_encoder(),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(),
        tokenizer_3=parts.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def flux() -> Any:
    """FLUX.1: CLIP and T5, guidance as an input of the transformer."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(12)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    return FluxPipeline(
        transformer=transformer,
        vae=parts.kl_vae(latent_channels=4, shift=0.0),
        text_encoder=parts.clip_text_encoder(),
        text_encoder_2=parts.t5_encoder(),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def qwen_image() -> Any:
    """Qwen-Image: a language model reads the prompt; the VAE keeps a feature cache of its own."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    torch.manual_seed(13)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    return QwenImagePipeline(
        transformer=transformer,
        vae=parts.qwen_image_vae(),
        text_encoder=parts.qwen_vl_encoder(),
        tokenizer=parts.qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def z_image() -> Any:
    """Z-Image: a single-stream transformer that reads Qwen3's hidden states."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(14)
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=(8, 4, 4),
        axes_lens=(1024, 64, 64),
    ).eval()
    with torch.no_grad():  # these two are born uninitialised: they must be the same in every process
        transformer.x_pad_token.copy_(torch.ones_like(transformer.x_pad_token))
        transformer.cap_pad_token.copy_(torch.ones_like(transformer.cap_pad_token))
    return ZImagePipeline(
        transformer=transformer,
        vae=parts.kl_vae(latent_channels=16, shift=0.0, levels=2),
        text_encoder=parts.qwen3_encoder(),
        tokenizer=parts.qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "qwenimage": qwen_image,
    "zimage": z_image,
}


def save(pipe: Any, folder: Path, **options: Any) -> Path:
    """Write a pipeline as a folder (`variant="fp16"` and the like pass through) and return it."""
    pipe.save_pretrained(folder, safe_serialization=True, **options)
    return folder
