"""A tiny vision projector (mmproj) of llava's kind, for the models of `tests.tiny.gguf`: 4 positions per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .gguf import write_gguf

__all__ = ["IMAGE_POSITIONS", "projector"]

SIDE, PATCH, WIDTH, LAYERS = 28, 14, 32, 2
IMAGE_POSITIONS = (SIDE // PATCH) ** 2


def projector(path: Path, *, embedding: int = 64, drop: str = "", seed: int = 5, **metadata: Any) -> Path:
    """Write one.

    Args:
        embedding: width of the language model that it is for.
        drop: a tensor to leave out.
        metadata: further entries; "__" in a name stands for ".".
    """
    draw = np.random.default_rng(seed)

    def weights(*shape: int) -> Any:
        return draw.standard_normal(shape, np.float32) * (2.0 / np.sqrt(shape[-1]))

    tensors = {
        "v.patch_embd.weight": weights(WIDTH, 3, PATCH, PATCH) * 0.3,
        "v.position_embd.weight": weights(IMAGE_POSITIONS, WIDTH),
        "mm.0.weight": weights(embedding, WIDTH),
        "mm.0.bias": np.zeros(embedding, np.float32),
        "mm.2.weight": weights(embedding, embedding) * 3,
        "mm.2.bias": np.zeros(embedding, np.float32),
    }
    for n in range(LAYERS):
        for name, shape in (
            ("attn_q", (WIDTH, WIDTH)), ("attn_k", (WIDTH, WIDTH)), ("attn_v", (WIDTH, WIDTH)),
            ("attn_out", (WIDTH, WIDTH)), ("ffn_up", (2 * WIDTH, WIDTH)), ("ffn_down", (WIDTH, 2 * WIDTH)),
        ):  # fmt: skip
            tensors[f"v.blk.{n}.{name}.weight"] = weights(*shape)
            tensors[f"v.blk.{n}.{name}.bias"] = np.zeros(shape[0], np.float32)
        for name in ("ln1", "ln2"):
            tensors[f"v.blk.{n}.{name}.weight"] = np.ones(WIDTH, np.float32)
            tensors[f"v.blk.{n}.{name}.bias"] = np.zeros(WIDTH, np.float32)
    tensors.pop(drop, None)
    entries = {
        "general.architecture": "clip",
        "general.name": path.stem,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": SIDE,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": WIDTH,
        "clip.vision.feed_forward_length": 2 * WIDTH,
        "clip.vision.block_count": LAYERS,
        "clip.vision.projection_dim": embedding,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    return write_gguf(path, entries, tensors)
