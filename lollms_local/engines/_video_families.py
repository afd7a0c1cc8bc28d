"""What each family of video models can make: frame counts, sizes, native settings. Pure: configurations in, rules out.

The pipelines change a frame count that they cannot make without a word (some up, some down) and refuse sizes. So the
counts and sizes are settled here, before anything is loaded, and what was changed is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import LoadError

__all__ = ["FAMILIES", "Family", "VideoRules", "rules_for"]

Config = Callable[[str], Mapping[str, Any]]
#: how a VAE works through a film: a few frames at a time whatever its length, or all at once unless told otherwise
Decoding = Literal["always_chunks", "framewise", "batch", "slices"]


@dataclass(frozen=True)
class VideoRules:
    """What one model can make.

    Attributes:
        family: e.g. "Wan".
        width, height: pixels it was trained at.
        num_frames, fps: its usual film.
        steps, guidance: its usual effort.
        frame_step: frame counts are `frame_step * k + 1`; 1 = any count.
        max_frames: most frames in one go; 0 = no limit of its own.
        size_multiple: widths and heights are multiples of this.
        fixed_size: it makes no other size than its own.
        from_text, from_image: what it can start from.
        image_class: pipeline that takes a first picture on the same weights; "" = the model's own does, or none.
        prompt_tokens: tokens of the prompt that it reads.
        call: arguments that its pipeline needs besides.
        decoding: how its VAE works; see `Decoding`.
        frames_per_pass: frames that one pass of the VAE's decoder makes when it works in chunks.
        decoder_channels: channels of the decoder per pixel of the picture at its widest.
        decoder_copies: values that live at once per value of that layer; measured, benchmarks/bench_ttv.py --memory.
        denoiser_channels: width of the denoiser per latent token.
        denoiser_copies: values that live at once per value of that width, guidance in the same batch included.
        token_pixels: pixels (of all frames) that one token stands for.
        needs: packages that generation needs and that loading does not miss.
    """

    family: str
    width: int
    height: int
    num_frames: int
    fps: float
    steps: int
    guidance: float
    frame_step: int
    max_frames: int
    size_multiple: int
    fixed_size: bool
    from_text: bool
    from_image: bool
    image_class: str
    prompt_tokens: int
    call: Mapping[str, Any]
    decoding: Decoding
    frames_per_pass: int
    decoder_channels: float
    decoder_copies: int
    denoiser_channels: int
    denoiser_copies: int
    token_pixels: int
    needs: tuple[str, ...] = ()

    def legal_frames(self, wanted: int) -> int:
        """The smallest count it can make that is at least `wanted`."""
        return max(0, math.ceil((wanted - 1) / self.frame_step)) * self.frame_step + 1

    def longest(self) -> int:
        """Most frames in one go, a legal count; 0 = no limit."""
        return (self.max_frames - 1) // self.frame_step * self.frame_step + 1 if self.max_frames else 0

    def legal_size(self, width: int, height: int) -> tuple[int, int]:
        """The nearest size that it can make."""
        if self.fixed_size:
            return self.width, self.height
        m = self.size_multiple
        return max(m, (width + m // 2) // m * m), max(m, (height + m // 2) // m * m)


@dataclass(frozen=True)
class Family:
    """A row of the table: pipelines that share rules.

    Attributes:
        name: of the family.
        rules: makes the rules from the configurations of a model's parts.
    """

    name: str
    rules: Callable[[Config], VideoRules]


def _wan(config: Config) -> VideoRules:
    """Wan 2.1 and 2.2, https://github.com/Wan-Video: 16 frames a second; TI2V-5B: 24, a VAE of 16x16x4, 1280x704."""
    vae, index = config("vae"), config("")
    transformer = config("transformer") or config("transformer_2")
    spatial, temporal = vae.get("scale_factor_spatial") or 8, vae.get("scale_factor_temporal") or 4
    patch = transformer.get("patch_size", (1, 2, 2))[1]
    both = bool(index.get("expand_timesteps"))  # TI2V: a picture is the first latent frame, on the same weights
    from_image = both or index.get("_class_name") == "WanImageToVideoPipeline"
    heads, width = transformer.get("num_attention_heads", 40), transformer.get("attention_head_dim", 128)
    pixels_of_decoder = (vae.get("patch_size") or 1) ** 2
    return VideoRules(
        family="Wan",
        width=1280 if both else 832,
        height=704 if both else 480,
        num_frames=121 if both else 81,
        fps=24.0 if both else 16.0,
        steps=50,
        guidance=5.0,
        frame_step=temporal,
        max_frames=(transformer.get("rope_max_seq_len", 1024) - 1) * temporal + 1,
        size_multiple=math.lcm(16, spatial * patch),
        fixed_size=False,
        from_text=both or not from_image,
        from_image=from_image,
        image_class="WanImageToVideoPipeline" if both else "",
        prompt_tokens=512,
        call={},
        decoding="always_chunks",
        frames_per_pass=temporal,
        decoder_channels=(vae.get("decoder_base_dim") or vae.get("base_dim", 96)) / pixels_of_decoder,
        decoder_copies=14,
        denoiser_channels=heads * width,
        denoiser_copies=8,
        token_pixels=(spatial * patch) ** 2 * temporal,
        needs=("ftfy",) if from_image else (),  # WanPipeline calls it only where it is installed, the other always
    )


def _ltx(config: Config) -> VideoRules:
    """LTX-Video, https://github.com/Lightricks/LTX-Video: 8k+1 frames, sides multiples of 32."""
    vae, transformer = config("vae"), config("transformer")
    halvings = sum(bool(s) for s in vae.get("spatio_temporal_scaling", (True, True, True, False)))
    patch = vae.get("patch_size", 4)
    spatial = vae.get("spatial_compression_ratio") or patch * 2**halvings
    temporal = vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * 2**halvings
    # from 0.9.1 on the decoder does the last denoising step itself: with these two values, as its authors publish it
    conditioned = bool(vae.get("timestep_conditioning"))
    channels = tuple(vae.get("decoder_block_out_channels", (128, 256, 512, 512)))
    return VideoRules(
        family="LTX-Video",
        width=704,
        height=480,
        num_frames=121,
        fps=24.0,
        steps=40,
        guidance=3.0,
        frame_step=temporal,
        max_frames=0,
        size_multiple=math.lcm(32, spatial * transformer.get("patch_size", 1)),
        fixed_size=False,
        from_text=True,
        from_image=True,
        image_class="LTXImageToVideoPipeline",
        prompt_tokens=128,
        call={"decode_timestep": 0.05, "decode_noise_scale": 0.025} if conditioned else {},
        decoding="framewise",
        frames_per_pass=17,  # 16 of a tile in time and one of overlap
        decoder_channels=channels[0] / patch**2,
        decoder_copies=6,
        denoiser_channels=transformer.get("num_attention_heads", 32) * transformer.get("attention_head_dim", 64),
        denoiser_copies=16,
        token_pixels=spatial**2 * temporal,
    )


def _cogvideox(config: Config) -> VideoRules:
    """CogVideoX, https://github.com/zai-org/CogVideo: 8k+1 frames (an even latent count gives others)."""
    vae, transformer = config("vae"), config("transformer")
    blocks = tuple(vae.get("block_out_channels", (128, 256, 256, 512)))
    spatial, temporal = 2 ** (len(blocks) - 1), int(vae.get("temporal_compression_ratio") or 4)
    patch, second = transformer.get("patch_size", 2), transformer.get("patch_size_t") is not None
    learned = bool(transformer.get("use_learned_positional_embeddings"))
    width, height = transformer.get("sample_width", 90) * spatial, transformer.get("sample_height", 60) * spatial
    frames = transformer.get("sample_frames", 49)
    return VideoRules(
        family="CogVideoX",
        width=width,
        height=height,
        num_frames=frames,
        fps=16.0 if second else 8.0,  # patch_size_t marks CogVideoX 1.5
        steps=50,
        guidance=6.0,
        frame_step=2 * temporal,
        max_frames=frames if learned else 0,
        size_multiple=math.lcm(8, spatial * patch),
        fixed_size=learned,
        from_text=config("").get("_class_name") == "CogVideoXPipeline",
        from_image=config("").get("_class_name") == "CogVideoXImageToVideoPipeline",
        image_class="",
        prompt_tokens=transformer.get("max_text_seq_length", 226),
        call={"max_sequence_length": transformer.get("max_text_seq_length", 226)},
        decoding="always_chunks",
        frames_per_pass=2 * temporal + 1,
        decoder_channels=blocks[0],
        decoder_copies=20,
        denoiser_channels=transformer.get("num_attention_heads", 30) * transformer.get("attention_head_dim", 64),
        denoiser_copies=16,
        token_pixels=(spatial * patch) ** 2 * temporal,
    )


def _animatediff(config: Config) -> VideoRules:
    """AnimateDiff, https://github.com/guoyww/AnimateDiff: Stable Diffusion with positions for a few dozen frames."""
    unet = config("unet")
    longest = config("motion_adapter").get("motion_max_seq_length") or unet.get("motion_max_seq_length") or 32
    return _stable_diffusion("AnimateDiff", config, 512, 512, steps=25, guidance=7.5, decoding="batch", longest=longest)


def _text_to_video_sd(config: Config) -> VideoRules:
    """ModelScope and Zeroscope."""
    return _stable_diffusion("TextToVideoSD", config, 256, 256, steps=25, guidance=9.0, decoding="slices", longest=0)


def _stable_diffusion(
    name: str, config: Config, width: int, height: int, *, steps: int, guidance: float, decoding: Decoding, longest: int
) -> VideoRules:
    vae, unet = config("vae"), config("unet")
    channels = tuple(vae.get("block_out_channels", (128, 256, 512, 512)))
    spatial = 2 ** (len(channels) - 1)
    return VideoRules(
        family=name,
        width=width,
        height=height,
        num_frames=16,
        fps=8.0,
        steps=steps,
        guidance=guidance,
        frame_step=1,
        max_frames=longest,
        size_multiple=math.lcm(8, spatial),
        fixed_size=False,
        from_text=True,
        from_image=False,
        image_class="",
        prompt_tokens=77,
        call={},
        decoding=decoding,
        frames_per_pass=1,
        decoder_channels=channels[0],
        decoder_copies=8,
        denoiser_channels=next(iter(unet.get("block_out_channels", (320,)))),
        denoiser_copies=24,
        token_pixels=spatial**2,
    )


#: class name in model_index.json -> its family
FAMILIES: Mapping[str, Family] = {
    "WanPipeline": Family("Wan", _wan),
    "WanImageToVideoPipeline": Family("Wan", _wan),
    "LTXPipeline": Family("LTX-Video", _ltx),
    "LTXImageToVideoPipeline": Family("LTX-Video", _ltx),
    "CogVideoXPipeline": Family("CogVideoX", _cogvideox),
    "CogVideoXImageToVideoPipeline": Family("CogVideoX", _cogvideox),
    "AnimateDiffPipeline": Family("AnimateDiff", _animatediff),
    "TextToVideoSDPipeline": Family("TextToVideoSD", _text_to_video_sd),
}


def rules_for(class_name: str, config: Config) -> VideoRules:
    """The rules of a model.

    Args:
        class_name: of its pipeline.
        config: gives the configuration of a part by name, {} where there is none; "" = of the pipeline itself.

    Raises:
        LoadError: the pipeline is of no family in the table, or a configuration holds nonsense.
    """
    family = FAMILIES.get(class_name)
    if family is None:
        names = ", ".join(sorted({f.name for f in FAMILIES.values()}))
        raise LoadError(f"{class_name} is no video pipeline that is supported.", hint=f"Choose a model of: {names}.")
    try:
        return family.rules(config)
    except (TypeError, ValueError, IndexError, KeyError) as exc:
        raise LoadError(
            f"The configuration of this {class_name} is damaged.", hint="Remove the model and download it again."
        ) from exc
