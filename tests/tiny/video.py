"""Tiny video pipelines of each family with random weights, saved and opened like downloaded ones.

`save(FAMILIES["wan"](), folder)` gives a folder that the engine loads. Built under a second each, under 1 MB on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import diffusion_parts as parts
from .diffusion import save

__all__ = ["FAMILIES", "animatediff", "cogvideox", "ltx", "motion_adapter", "save", "wan", "wan_i2v", "wan_ti2v"]


def _wan_vae(z_dim: int = 16) -> Any:
    """Wan's VAE: 8 pixels a side and 4 frames to one latent; it keeps a feature cache while it works."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(20)
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
    ).eval()


def _wan_transformer(seed: int = 21, **extra: Any) -> Any:
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    config: dict[str, Any] = {"in_channels": 16, "out_channels": 16, **extra}
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
        **config,
    ).eval()


def _flow_unipc() -> Any:
    """The scheduler that Wan's folders name."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan(*, two_stages: bool = False) -> Any:
    """Wan 2.1 text to video; `two_stages` is Wan 2.2 with one transformer for each half of the steps."""
    from diffusers import WanPipeline

    return WanPipeline(
        vae=_wan_vae(),
        text_encoder=parts.t5_encoder(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=_flow_unipc(),
        transformer=_wan_transformer(),
        transformer_2=_wan_transformer(22) if two_stages else None,
        boundary_ratio=0.875 if two_stages else None,
    )


def wan_ti2v() -> Any:
    """Wan 2.2 TI2V: one set of weights for text and for image to video, a time for every token."""
    from diffusers import WanPipeline

    return WanPipeline(
        vae=_wan_vae(),
        text_encoder=parts.t5_encoder(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=_flow_unipc(),
        transformer=_wan_transformer(23),
        expand_timesteps=True,
    )


def wan_i2v() -> Any:
    """Wan 2.1 image to video: a CLIP encoder sees the picture, the transformer gets it as extra channels."""
    import torch
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(24)
    eyes = CLIPVisionConfig(
        hidden_size=4,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=1,
    )
    return WanImageToVideoPipeline(
        vae=_wan_vae(),
        text_encoder=parts.t5_encoder(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=_flow_unipc(),
        transformer=_wan_transformer(25, in_channels=36, image_dim=4),
        image_encoder=CLIPVisionModel(eyes).eval(),
        image_processor=CLIPImageProcessor(crop_size=32, size=32),
    )


def ltx(*, timestep_conditioning: bool = False) -> Any:
    """LTX-Video; `timestep_conditioning` is a 0.9.1 or later VAE, which adds noise before it decodes."""
    import torch
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    torch.manual_seed(26)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    ).eval()
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=timestep_conditioning,
        patch_size=4,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    ).eval()
    return LTXPipeline(
        vae=vae,
        text_encoder=parts.t5_encoder(),
        tokenizer=parts.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
    )


def cogvideox(*, image_to_video: bool = False) -> Any:
    """CogVideoX; `image_to_video` is the variant whose transformer takes the picture as extra channels."""
    import torch
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXImageToVideoPipeline,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    torch.manual_seed(27)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8 if image_to_video else 4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=image_to_video,
    ).eval()
    vae = AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()
    cls = CogVideoXImageToVideoPipeline if image_to_video else CogVideoXPipeline
    return cls(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )


def _sd_unet() -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(28)
    return UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=2,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
        attention_head_dim=2,
    ).eval()


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1)


def motion_adapter() -> Any:
    """The motion layers that turn Stable Diffusion into AnimateDiff; positions for at most 32 frames."""
    import torch
    from diffusers import MotionAdapter

    torch.manual_seed(29)
    return MotionAdapter(
        block_out_channels=(8, 8),
        motion_layers_per_block=2,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
        motion_max_seq_length=32,
    ).eval()


def stable_diffusion_base() -> Any:
    """A Stable Diffusion pipeline that `motion_adapter` fits."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=parts.kl_vae(levels=2),
        text_encoder=parts.clip_text_encoder(),
        tokenizer=parts.clip_tokenizer(),
        unet=_sd_unet(),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def animatediff() -> Any:
    """AnimateDiff as one folder: Stable Diffusion with motion layers inside its UNet."""
    from diffusers import AnimateDiffPipeline

    base = stable_diffusion_base()
    return AnimateDiffPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        motion_adapter=motion_adapter(),
        scheduler=base.scheduler,
    )


def text_to_video_sd() -> Any:
    """ModelScope and Zeroscope: a 3D UNet; it tells its steps by no callback that can stop it."""
    import torch
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    torch.manual_seed(30)
    unet = UNet3DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=2,
    ).eval()
    return TextToVideoSDPipeline(
        vae=parts.kl_vae(levels=2),
        text_encoder=parts.clip_text_encoder(),
        tokenizer=parts.clip_tokenizer(),
        unet=unet,
        scheduler=_ddim(),
    )


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "wan": wan,
    "wan22": lambda: wan(two_stages=True),
    "wan_ti2v": wan_ti2v,
    "wan_i2v": wan_i2v,
    "ltx": ltx,
    "ltx_timestep": lambda: ltx(timestep_conditioning=True),
    "cogvideox": cogvideox,
    "cogvideox_i2v": lambda: cogvideox(image_to_video=True),
    "animatediff": animatediff,
    "text_to_video_sd": text_to_video_sd,
}
