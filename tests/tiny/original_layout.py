"""The tiny SD pipeline in the layout of the original checkpoints, for the single-file loader to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tensors = dict[str, Any]

_LAYERS = 1  # layers_per_block of the tiny networks
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_sd(parts: Mapping[str, Tensors], levels: int = 2) -> Tensors:
    """One checkpoint of the three networks' tensors, as diffusers names them."""
    found: Tensors = {}
    for name, tensor in parts["unet"].items():
        found[f"model.diffusion_model.{_unet_name(name, levels)}"] = tensor
    for name, tensor in parts["vae"].items():
        new = _vae_name(name, levels)
        is_linear = ".mid.attn_1." in new and tensor.ndim == 2
        found[f"first_stage_model.{new}"] = tensor[..., None, None].contiguous() if is_linear else tensor
    for name, tensor in parts["text_encoder"].items():
        found[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return found


def _unet_name(name: str, levels: int) -> str:
    moves = dict(_UNET)
    for level in range(levels):
        for layer in range(_LAYERS):
            place = f"input_blocks.{(_LAYERS + 1) * level + layer + 1}"
            moves[f"down_blocks.{level}.resnets.{layer}"] = f"{place}.0"
            moves[f"down_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        moves[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(_LAYERS + 1) * (level + 1)}.0.op"
        for layer in range(_LAYERS + 1):
            place = f"output_blocks.{(_LAYERS + 1) * level + layer}"
            moves[f"up_blocks.{level}.resnets.{layer}"] = f"{place}.0"
            moves[f"up_blocks.{level}.attentions.{layer}"] = f"{place}.1"
        # the tiny network's first up block has attention, and it is the only one with an upsampler
        moves[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{(_LAYERS + 1) * level + _LAYERS}.2.conv"
    start = next(old for old in moves if name.startswith(f"{old}."))
    rest = name.removeprefix(start)
    if "resnets" in start:
        inner = rest.split(".")[1]
        rest = rest.replace(inner, _RESNET[inner], 1)
    return moves[start] + rest


def _vae_name(name: str, levels: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    moves = {"mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "conv_norm_out": "norm_out"}
    moves["mid_block.attentions.0"] = "mid.attn_1"
    for level in range(levels):
        for layer in range(_LAYERS + 1):
            moves[f"down_blocks.{level}.resnets.{layer}"] = f"down.{level}.block.{layer}"
            moves[f"up_blocks.{level}.resnets.{layer}"] = f"up.{levels - 1 - level}.block.{layer}"
        moves[f"down_blocks.{level}.downsamplers.0"] = f"down.{level}.downsample"
        moves[f"up_blocks.{level}.upsamplers.0"] = f"up.{levels - 1 - level}.upsample"
    for old, new in moves.items():
        if rest.startswith(f"{old}."):
            rest = new + rest.removeprefix(old)
            break
    if rest.startswith("mid.attn_1."):
        for old, new in _VAE_ATTENTION.items():
            rest = rest.replace(f"attn_1.{old}.", f"attn_1.{new}.")
    return f"{side}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
