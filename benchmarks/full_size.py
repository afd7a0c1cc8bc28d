"""Models of published size with random weights, for measurements on a GPU: nobody has to download them.

Speed and memory depend on shapes and number formats, not on what the weights say. `small=True` builds the same shapes
in miniature, to rehearse a measurement on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["bark", "llama_8b", "musicgen_large", "sdxl", "wan_1_3b"]


@contextmanager
def _on_gpu(dtype: str) -> Iterator[None]:
    """New tensors are made on the GPU where there is one (seconds instead of minutes), in `dtype`."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def sdxl(folder: Path, *, small: bool = False) -> Path:
    """stabilityai/stable-diffusion-xl-base-1.0: a UNet of 2.57 billion parameters, two text encoders, a KL VAE."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    from tests.tiny import diffusion
    from tests.tiny import diffusion_parts as parts

    if small:
        return diffusion.save(diffusion.sdxl(), folder)
    with _on_gpu("bfloat16"):
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, sample_size=1024,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            scaling_factor=0.13025,
        )  # fmt: skip
        encoder, encoder_2 = _clip(768, 12, 12), _clip(1280, 32, 20, projection=1280)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    pipe = StableDiffusionXLPipeline(
        unet=unet, vae=vae, text_encoder=encoder, text_encoder_2=encoder_2, tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(), scheduler=scheduler,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def _clip(hidden: int, layers: int, heads: int, projection: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49_408, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=projection or hidden, bos_token_id=512, eos_token_id=513,
        pad_token_id=513,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def wan_1_3b(folder: Path, *, small: bool = False) -> Path:
    """Wan-AI/Wan2.1-T2V-1.3B: transformer and VAE as published; the text encoder (UMT5-XXL, 5.7 billion) has 2 layers.

    The text encoder runs once per film; its other 22 layers would only be copied about.
    """
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from tests.tiny import diffusion, video
    from tests.tiny import diffusion_parts as parts

    if small:
        return diffusion.save(video.wan(), folder)
    with _on_gpu("bfloat16"):
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16,
            text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        )  # fmt: skip
        vae = AutoencoderKLWan()
        encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=256_384, d_model=4096, d_kv=64, d_ff=10_240, num_layers=2, num_heads=64)
        )
    pipe = WanPipeline(
        vae=vae, text_encoder=encoder, tokenizer=parts.t5_tokenizer(), scheduler=video._flow_unipc(),
        transformer=transformer,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def bark(folder: Path, *, small: bool = False, tokens: int = 256) -> Path:
    """suno/bark: three transformers of 24 layers and 1024 hidden units, and the 24 kHz codec. It speaks for
    `tokens` / 49.9 seconds."""
    from transformers import BarkConfig, BarkModel, EncodecConfig, GenerationConfig
    from transformers.models.bark.configuration_bark import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig

    from tests.tiny import bark as tiny

    if small:
        return tiny.build_bark(folder, tokens=24)
    size = {"num_layers": 24, "num_heads": 16, "hidden_size": 1024, "block_size": 1024}
    config = BarkConfig(
        semantic_config=BarkSemanticConfig(**size, input_vocab_size=129_600, output_vocab_size=10_048).to_dict(),
        coarse_acoustics_config=BarkCoarseConfig(**size, input_vocab_size=12_096, output_vocab_size=12_096).to_dict(),
        fine_acoustics_config=BarkFineConfig(**size, input_vocab_size=1_056, output_vocab_size=1_056).to_dict(),
        codec_config=EncodecConfig(target_bandwidths=[6.0]).to_dict(),
    )
    with _on_gpu("float32"):
        model = BarkModel(config).eval()
        for layer in model.codec_model.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config = GenerationConfig()
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(tiny._generation_config(tokens)))
    tiny._write_tokenizer(folder)
    tiny._write_presets(folder, ("v2/en_speaker_6",))
    return folder


def musicgen_large(folder: Path, *, small: bool = False) -> Path:
    """facebook/musicgen-large: a decoder of 48 layers and 2048 hidden units, a T5-base encoder, the 32 kHz codec."""
    from transformers import EncodecConfig, MusicgenConfig, MusicgenForConditionalGeneration, T5Config

    from tests.tiny import musicgen as tiny

    if small:
        return tiny.build_musicgen(folder)
    codec = EncodecConfig(
        sampling_rate=32_000, num_filters=64, hidden_size=128, codebook_size=2048, codebook_dim=128,
        upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[2.2], use_causal_conv=False,
    )  # fmt: skip
    text = T5Config(vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    decoder = {
        "vocab_size": 2048, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "ffn_dim": 8192,
        "num_codebooks": 4, "audio_channels": 1, "pad_token_id": 2048, "bos_token_id": 2048,
    }  # fmt: skip
    with _on_gpu("float32"):
        model = MusicgenForConditionalGeneration(
            MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder)
        ).eval()
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    model.half().save_pretrained(folder)
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_length": 1500, "pad_token_id": 2048,
                "bos_token_id": 2048, "decoder_start_token_id": 2048}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    tiny._write_tokenizer(folder, 64)
    return folder


def llama_8b(path: Path, *, small: bool = False) -> Path:
    """Llama-3.1-8B's shape as GGUF, all weights Q4_0: 4.5 GB. Tokens beyond the tiny vocabulary have no text of use."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    from tests.tiny.gguf import CHATML, vocabulary

    layers, hidden, ffn, heads, kv, words = (2, 256, 512, 4, 2, 2000) if small else (32, 4096, 14_336, 32, 8, 128_256)
    known = vocabulary()
    names = known["tokenizer.ggml.tokens"]
    spare = [f"<spare_{n}>" for n in range(words - len(names))]
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(131_072)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(500_000.0)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*names, *spare])
    writer.add_token_types([*known["tokenizer.ggml.token_type"], *([5] * len(spare))])
    writer.add_token_merges(known["tokenizer.ggml.merges"])
    writer.add_bos_token_id(known["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(known["tokenizer.ggml.eos_token_id"])
    writer.add_chat_template(CHATML)
    draw = np.random.default_rng(0)
    made: dict[tuple[int, int], Any] = {}

    def q4(rows: int, columns: int) -> Any:
        """Blocks of 32 numbers: a float16 scale and 16 bytes of nibbles. One array per shape: names share it."""
        if (rows, columns) not in made:
            blocks = draw.integers(0, 256, (rows, columns // 32, 18), np.uint8)
            scale = np.float16(0.2 / np.sqrt(columns))
            blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
            made[rows, columns] = blocks.reshape(rows, -1)
        return made[rows, columns]

    def add(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", q4(rows, columns), raw_dtype=GGMLQuantizationType.Q4_0)

    narrow = hidden // heads * kv
    add("token_embd", words, hidden)
    add("output", words, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for n in range(layers):
        for name, rows, columns in (
            ("attn_q", hidden, hidden), ("attn_k", narrow, hidden), ("attn_v", narrow, hidden),
            ("attn_output", hidden, hidden), ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ):  # fmt: skip
            add(f"blk.{n}.{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{n}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
