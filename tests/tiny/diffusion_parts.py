"""Parts of tiny diffusion pipelines: tokenizers, text encoders and VAEs with random weights, built from configurations.

Every builder seeds torch itself, so the same call gives the same weights in every process.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 600  # byte alphabet twice (with and without the end-of-word mark), a few merges, special tokens


def _bytes_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def clip_tokenizer() -> Any:
    """A CLIP tokenizer of 77 tokens: every letter is one token, so long prompts are easy to make."""
    from transformers import CLIPTokenizer

    letters = _bytes_alphabet()
    vocabulary = {t: i for i, t in enumerate([*letters, *(f"{t}</w>" for t in letters)])}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_text_encoder(*, with_projection: bool = False, hidden_size: int = 32, layers: int = 3) -> Any:
    """A CLIP text encoder; `with_projection` gives the class that SDXL's and SD3's second encoder has."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=37,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=hidden_size,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config).eval()


def t5_tokenizer() -> Any:
    """A T5 tokenizer whose pieces are single letters."""
    from transformers import T5TokenizerFast

    letters = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)


def t5_encoder(*, d_model: int = 32) -> Any:
    """A T5 encoder of two layers."""
    import torch
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(1)
    config = T5Config(vocab_size=VOCABULARY, d_model=d_model, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


QWEN_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Any:
    """A Qwen2 tokenizer of single bytes, with the chat markers."""
    from transformers import Qwen2Tokenizer

    vocabulary = {t: i for i, t in enumerate(_bytes_alphabet())}
    for special in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad"):
        vocabulary[f"<|{special}|>"] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = QWEN_CHAT_TEMPLATE
    return tokenizer


def qwen3_encoder() -> Any:
    """The text encoder of Z-Image and FLUX.2 Klein: a Qwen3 language model."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return Qwen3Model(config).eval()


def qwen_vl_encoder() -> Any:
    """The text encoder of Qwen-Image: a Qwen2.5-VL language model."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(3)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        hidden_size=16,
        vocab_size=VOCABULARY,
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
        vision_token_id=261,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def kl_vae(*, latent_channels: int = 4, levels: int = 2, channels: int = 8, shift: float | None = None) -> Any:
    """A KL VAE that shrinks by 2 ** (levels - 1) a side; `shift` makes it one of SD3 or Flux (no quant convs)."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    modern = {} if shift is None else {"shift_factor": shift, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        block_out_channels=[channels] * levels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.6 if shift is not None else 0.18215,
        **modern,
    ).eval()


def qwen_image_vae() -> Any:
    """The VAE of Qwen-Image: causal 3D convolutions with a feature cache; shrinks by 8."""
    import torch
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(5)
    z = 4
    return AutoencoderKLQwenImage(
        base_dim=z * 6,
        z_dim=z,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * z,
        latents_std=[1.0] * z,
    ).eval()
