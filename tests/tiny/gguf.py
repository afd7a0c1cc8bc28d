"""Tiny GGUF files: a Llama of 60,000 random weights that reads and writes bytes, a BERT, an adapter, damaged copies.

The vocabulary has a token per byte, a few merges and the usual markup: so every character beyond ASCII is split over
tokens, and what the model writes (noise, the same noise every time) is a hard case for everything that handles text.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CHATML", "SPECIAL", "THINKING", "bert", "damaged", "llama", "lora", "split", "vocabulary", "write_gguf"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
#: a template that opens a thought unless it is told not to, and knows tools
THINKING = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    + CHATML
    + "{% if enable_thinking %}{{ '<think>\\n' }}{% else %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
_MERGES = ("h e", "t h", "i n", "e r", "a n", "o u", "r e", "l l", "th e", "in g")
_ALIGNMENT = 32

Array = npt.NDArray[Any]


# --- the format -------------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type number and value: bool, int (u32), float (f32), text, numpy's u16 and i32, or a list (ints as i32)."""
    if isinstance(value, np.uint16):
        return struct.pack("<IH", 2, value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, np.int32):
        return struct.pack("<Ii", 5, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    rows = list(value)
    if rows and isinstance(rows[0], str):
        return struct.pack("<IIQ", 9, 8, len(rows)) + b"".join(map(_text, rows))
    kind, code = (6, "f") if rows and isinstance(rows[0], float) else (5, "i")
    return struct.pack(f"<IIQ{len(rows)}{code}", 9, kind, len(rows), *rows)


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """A GGUF file of version 3 with float32 tensors; shapes as numpy has them (the contiguous one last)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    data = bytearray()
    for name, array in tensors.items():
        shape = array.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += array.astype("<f4").tobytes()
        data += bytes(-len(data) % _ALIGNMENT)
    path.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + data)
    return path


# --- a vocabulary -----------------------------------------------------------------------------------------------------


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def vocabulary() -> dict[str, Any]:
    """Metadata of a byte-level BPE tokenizer with chat markup."""
    tokens = [*_byte_characters(), *(m.replace(" ", "") for m in _MERGES), *SPECIAL]
    first = len(tokens) - len(SPECIAL)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        # thoughts and calls are "user defined" (4) as in real files, the rest control (3)
        "tokenizer.ggml.token_type": [1] * first + [3, 3, 3, 4, 4, 4, 4],
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.bos_token_id": first,
        "tokenizer.ggml.eos_token_id": first + 2,
        "tokenizer.ggml.add_bos_token": False,
    }


# --- models -----------------------------------------------------------------------------------------------------------


def llama(
    path: Path,
    *,
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 4096,
    seed: int = 0,
    template: str = CHATML,
    endless: bool = False,
    **metadata: Any,
) -> Path:
    """A chat model of the architecture "llama" with random weights.

    Args:
        endless: the likeliest token never ends the answer.
        metadata: further entries; "__" in a name stands for ".".
    """
    draw = np.random.default_rng(seed)
    words = vocabulary()
    size, head = len(words["tokenizer.ggml.tokens"]), embedding // heads

    def weights(*shape: int) -> Array:
        return draw.standard_normal(shape, np.float32) * (2.0 / np.sqrt(shape[-1]))

    tensors: dict[str, Array] = {"token_embd.weight": draw.standard_normal((size, embedding), np.float32)}
    for n in range(layers):
        sizes = {
            "attn_q": (embedding, embedding), "attn_k": (kv_heads * head, embedding),
            "attn_v": (kv_heads * head, embedding), "attn_output": (embedding, embedding),
            "ffn_gate": (2 * embedding, embedding), "ffn_up": (2 * embedding, embedding),
            "ffn_down": (embedding, 2 * embedding),
        }  # fmt: skip
        tensors.update({f"blk.{n}.{name}.weight": weights(*shape) for name, shape in sizes.items()})
        tensors.update({f"blk.{n}.{name}.weight": np.ones(embedding, np.float32) for name in ("attn_norm", "ffn_norm")})
    tensors["output_norm.weight"] = np.ones(embedding, np.float32)
    tensors["output.weight"] = weights(size, embedding)
    if endless:
        tensors["output.weight"][words["tokenizer.ggml.bos_token_id"] :] = 0
    entries = {
        "general.architecture": "llama",
        "general.name": path.stem,
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": embedding,
        "llama.feed_forward_length": 2 * embedding,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": head,
        "llama.vocab_size": size,
        **words,
        **({"tokenizer.chat_template": template} if template else {}),
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    return write_gguf(path, entries, tensors)


def split(path: Path, folder: Path) -> list[Path]:
    """A model of `llama` as two files, in the form of llama.cpp's own splitter."""
    from lollms_local.gguf import read_gguf

    header, data = read_gguf(path), path.read_bytes()
    start = len(data) - max(t.offset + t.nbytes + (-t.nbytes % _ALIGNMENT) for t in header.tensors.values())
    arrays = {
        name: np.frombuffer(data, "<f4", t.nbytes // 4, start + t.offset).reshape(t.shape[::-1])
        for name, t in header.tensors.items()
    }
    names = list(arrays)
    kept = {k: v for k, v in header.metadata.items() if not k.startswith("tokenizer.")}
    entries = {**kept, **vocabulary(), "tokenizer.chat_template": CHATML}
    files = []
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        told = {"split.no": np.uint16(number), "split.count": np.uint16(2)}
        whole = {**(entries if number == 0 else {}), **told, "split.tensors.count": np.int32(len(names))}
        file = folder / f"{path.stem}-{number + 1:05d}-of-00002.gguf"
        files.append(write_gguf(file, whole, {name: arrays[name] for name in part}))
    return files


def lora(path: Path, *, embedding: int = 64, rank: int = 4, seed: int = 9, architecture: str = "llama") -> Path:
    """A LoRA adapter for the queries of the first layer of `llama`."""
    draw = np.random.default_rng(seed)
    entries = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    tensors = {
        "blk.0.attn_q.weight.lora_a": draw.standard_normal((rank, embedding), np.float32),
        "blk.0.attn_q.weight.lora_b": draw.standard_normal((embedding, rank), np.float32),
    }
    return write_gguf(path, entries, tensors)


def bert(path: Path, *, embedding: int = 32, layers: int = 1, words: Sequence[str] = ("cat", "dog", "sun")) -> Path:
    """An embedding model: BERT with mean pooling and a WordPiece vocabulary of letters and some words."""
    draw = np.random.default_rng(4)
    letters = "abcdefghijklmnopqrstuvwxyz"
    # llama.cpp writes "▁" before the first piece of a word, and nothing before the others
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *("▁" + w for w in (*words, *letters)), *letters]

    def weights(*shape: int) -> Array:
        return draw.standard_normal(shape, np.float32)

    tensors: dict[str, Array] = {
        "token_embd.weight": weights(len(pieces), embedding),
        "position_embd.weight": weights(128, embedding),
        "token_types.weight": weights(2, embedding),
        "token_embd_norm.weight": np.ones(embedding, np.float32),
        "token_embd_norm.bias": np.zeros(embedding, np.float32),
    }
    for n in range(layers):
        for name, shape in {
            "attn_q": (embedding, embedding), "attn_k": (embedding, embedding), "attn_v": (embedding, embedding),
            "attn_output": (embedding, embedding), "ffn_up": (64, embedding), "ffn_down": (embedding, 64),
        }.items():  # fmt: skip
            tensors[f"blk.{n}.{name}.weight"] = weights(*shape) / 8
            tensors[f"blk.{n}.{name}.bias"] = np.zeros(shape[0], np.float32)
        for name in ("attn_output_norm", "layer_output_norm"):
            tensors[f"blk.{n}.{name}.weight"] = np.ones(embedding, np.float32)
            tensors[f"blk.{n}.{name}.bias"] = np.zeros(embedding, np.float32)
    entries = {
        "general.architecture": "bert",
        "general.name": path.stem,
        "bert.block_count": layers,
        "bert.context_length": 128,
        "bert.embedding_length": embedding,
        "bert.feed_forward_length": 64,
        "bert.attention.head_count": 2,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(pieces) - 5),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.mask_token_id": 4,
    }
    return write_gguf(path, entries, tensors)


# --- damage -----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, count: int, *, header_bytes: int, seed: int = 1) -> Iterator[bytes]:
    """Copies of a file, each broken in a way: cut, bits flipped, numbers made huge, pieces left out or doubled."""
    draw = random.Random(seed)
    for number in range(count):
        copy = bytearray(data)
        at = draw.randrange(header_bytes)
        kind = number % 6
        if kind == 0:
            del copy[draw.randrange(len(copy)) :]
        elif kind == 1:
            for _ in range(draw.choice((1, 1, 1, 8, 64))):
                copy[draw.randrange(header_bytes)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            huge = draw.choice((0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 1 << 40, 1 << 32, 0xFFFFFFFF, 0, 1))
            copy[at : at + 8] = huge.to_bytes(8, "little")
        elif kind == 3:
            start = draw.choice((4, 8, 16))  # version, tensors, entries
            copy[start : start + 4] = draw.randrange(1 << 32).to_bytes(4, "little")
        elif kind == 4:
            del copy[at : at + draw.choice((1, 4, 8, 100))]
        else:
            copy[at:at] = copy[at : at + draw.choice((1, 4, 8, 100))]
        yield bytes(copy)
