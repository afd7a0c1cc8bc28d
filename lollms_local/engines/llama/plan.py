"""What a model will take and where its layers go: arithmetic over the header, nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import UnsupportedRequest
from ...footprint import Footprint
from ...gguf import GGML_TYPES, GgufHeader
from ...modalities.chat import ChatLoadOptions
from .native import KV_TYPES

__all__ = ["VOCABULARY_BYTES_PER_TOKEN", "Placement", "Sizes", "plan"]

MIB = 1 << 20
MAX_AUTO_CTX = 32_768
MIN_AUTO_CTX = 2_048
#: largest context that may be asked for by name, as a multiple of the trained one (RoPE scaling reaches that far)
MAX_STRETCH = 32
#: a token's text, score and merges, in the library's hash tables (measured: 17 MB for 49152 tokens)
VOCABULARY_BYTES_PER_TOKEN = 400
#: rows of logits that are written to: the last token's, or those of a draft
WRITTEN_LOGITS = 9
MAX_AUTO_PROMPT_CACHE_BYTES = 1024 * MIB


@dataclass(frozen=True)
class Placement:
    """What `plan` decided, for `load`.

    Attributes:
        n_ctx: context in tokens.
        n_gpu_layers: layers on the GPU; the output layer counts as one more.
        prompt_cache_bytes: most RAM for saved states.
    """

    n_ctx: int
    n_gpu_layers: int
    prompt_cache_bytes: int


@dataclass(frozen=True)
class Sizes:
    """The numbers of a header that memory depends on.

    Attributes:
        kv_rows: per layer, numbers of one token in the key cache and in the value cache.
        layer_bytes: weights per layer.
        other_bytes: weights that are in no layer: embedding and output.
        output_bytes: those of them that follow the layers to the GPU.
    """

    layers: int
    trained_ctx: int
    embedding: int
    vocabulary: int
    heads: int
    kv_rows: tuple[tuple[int, int], ...]
    layer_bytes: tuple[int, ...]
    other_bytes: int
    output_bytes: int
    pooled: bool

    @classmethod
    def of(cls, header: GgufHeader, weights_bytes: int) -> Sizes:
        """Read them. For architectures that cache less than all (sliding windows, MLA) they are an upper bound."""
        layers = int(header.of_arch("block_count"))
        embedding = int(header.of_arch("embedding_length", 1))
        heads = _per_layer(header.of_arch("attention.head_count", 1), layers)
        kv_heads = _per_layer(header.of_arch("attention.head_count_kv", heads), layers)
        head_size = embedding // max(1, *heads)
        key = int(header.of_arch("attention.key_length", head_size))
        value = int(header.of_arch("attention.value_length", head_size))
        per_layer, other, output = _weights(header, layers)
        unseen = max(0, weights_bytes - sum(per_layer) - other)  # shards: only the first one's table is at hand
        return cls(
            layers=layers,
            trained_ctx=int(header.of_arch("context_length", 4096)),
            embedding=embedding,
            vocabulary=header.vocabulary_size or int(header.of_arch("vocab_size", 0)),
            heads=max(heads),
            kv_rows=tuple((key * n, value * n) for n in kv_heads),
            layer_bytes=tuple(b + unseen // layers for b in per_layer),
            other_bytes=other,
            output_bytes=output,
            pooled=header.of_arch("attention.causal") is False,
        )

    def kv_bytes(self, n_ctx: int, type_k: str = "f16", type_v: str = "f16") -> tuple[int, ...]:
        """Bytes of the cache per layer: n_ctx * kv_heads * head_size * bytes per number, for keys and for values."""
        if self.pooled:
            return (0,) * self.layers
        cells = -(-n_ctx // 256) * 256  # llama.cpp rounds up
        return tuple(cells * (_row_bytes(k, type_k) + _row_bytes(v, type_v)) for k, v in self.kv_rows)

    def compute_bytes(self, n_ctx: int, n_ubatch: int, *, flash_attention: bool, gpu: bool) -> int:
        """Bytes for one computation: activations, the mask, logits, and the scores of plain attention.

        llama.cpp reserves logits for every token of a computation. A GPU gives all of it at once; RAM is only taken
        where it is written to, and that is one row of logits. SmolLM2-135M, 8192 tokens, 512 per computation: 117 MiB
        by this and 100 by llama.cpp's log; without a GPU 22 by this and 18 seen.
        """
        rows = min(n_ubatch, n_ctx)
        activations = rows * self.embedding * 4 * 12
        logits = (rows if gpu else min(rows, WRITTEN_LOGITS)) * self.vocabulary * 4
        scores = 0 if flash_attention else rows * n_ctx * self.heads * 4
        return max(logits, scores) + activations + rows * n_ctx * 2


def _per_layer(value: object, layers: int) -> tuple[int, ...]:
    """A number, or one per layer (a list that is too short repeats its last)."""
    if isinstance(value, tuple):
        numbers = [int(n) for n in value[:layers]] or [1]
        return tuple(numbers + [numbers[-1]] * (layers - len(numbers)))
    return (int(value),) * layers  # type: ignore[call-overload]


def _row_bytes(numbers: int, kind: str) -> int:
    _, block, block_bytes = GGML_TYPES[KV_TYPES[kind]]
    return -(-numbers // block) * block_bytes


def _weights(header: GgufHeader, layers: int) -> tuple[list[int], int, int]:
    """Bytes per layer, bytes outside of the layers, and the part of those that belongs to the output."""
    per_layer, other, output = [0] * layers, 0, 0
    for name, tensor in header.tensors.items():
        block, _, rest = name.partition(".")
        number = rest.split(".", 1)[0]
        if block == "blk" and number.isdigit() and int(number) < layers:
            per_layer[int(number)] += tensor.nbytes
            continue
        other += tensor.nbytes
        if name.startswith("output"):
            output += tensor.nbytes
    if "output.weight" not in header.tensors and "token_embd.weight" in header.tensors:
        output += header.tensors["token_embd.weight"].nbytes  # tied: the GPU gets a copy
    return per_layer, other, output


def plan(sizes: Sizes, options: ChatLoadOptions, *, room_bytes: int, gpu: bool, extra_bytes: int = 0) -> Footprint:
    """The longest context, with as many layers on the GPU as fit beside it.

    Args:
        sizes: of the model.
        options: the user's wishes.
        room_bytes: most that the device's pool can give.
        gpu: whether layers can go to a GPU at all; otherwise everything is in RAM.
        extra_bytes: adapters and projectors, held beside the weights.

    Raises:
        UnsupportedRequest: the context asked for is far beyond what the model was made for.
    """
    if options.ctx_size > sizes.trained_ctx * MAX_STRETCH:
        raise UnsupportedRequest(
            f"ctx_size={options.ctx_size} is more than {MAX_STRETCH} times the {sizes.trained_ctx} tokens that the "
            "model was trained with.",
            hint="Use a smaller ctx_size, or 0 for the model's own.",
        )
    flash = options.flash_attention != "off"
    candidates = list(_contexts(sizes, options))
    for n_ctx in candidates:
        kv = sizes.kv_bytes(n_ctx, options.kv_type_k, options.kv_type_v)
        compute = sizes.compute_bytes(n_ctx, options.n_ubatch, flash_attention=flash, gpu=gpu)
        layers = _gpu_layers(sizes, options, kv, compute + extra_bytes, room_bytes) if gpu else 0
        made = _footprint(sizes, options, n_ctx, kv, compute, layers, extra_bytes, gpu, room_bytes)
        all_placed = not gpu or options.n_gpu_layers >= 0 or layers > sizes.layers
        fits = made.weights_bytes + made.workspace_bytes <= room_bytes
        if (fits and all_placed) or n_ctx == candidates[-1]:
            break
        if fits and gpu and n_ctx <= 16_384:
            break  # better some layers in RAM than less context than the host's own prompts need
    return made


def _contexts(sizes: Sizes, options: ChatLoadOptions) -> Iterator[int]:
    """Contexts to try, longest first."""
    if options.ctx_size:
        yield options.ctx_size
        return
    n_ctx = min(sizes.trained_ctx, MAX_AUTO_CTX)
    yield n_ctx
    while n_ctx > MIN_AUTO_CTX:
        n_ctx = max(MIN_AUTO_CTX, n_ctx // 2)
        yield n_ctx


def _gpu_layers(sizes: Sizes, options: ChatLoadOptions, kv: tuple[int, ...], fixed_bytes: int, room_bytes: int) -> int:
    """How many of the last layers fit, the output counted as one more. ggml ends the process on a full card."""
    if options.n_gpu_layers >= 0:
        return min(options.n_gpu_layers, sizes.layers + 1)
    left = room_bytes - fixed_bytes
    cache = kv if options.offload_kqv else (0,) * sizes.layers
    # the output's own weights come first in llama.cpp's order of layers to offload
    for count in range(sizes.layers + 2):
        need = sum(sizes.layer_bytes[sizes.layers - k] + cache[sizes.layers - k] for k in range(1, count))
        need += sizes.output_bytes if count else 0
        if need > left:
            return max(0, count - 1)
    return sizes.layers + 1


def _footprint(
    sizes: Sizes,
    options: ChatLoadOptions,
    n_ctx: int,
    kv: tuple[int, ...],
    compute: int,
    layers: int,
    extra_bytes: int,
    gpu: bool,
    room_bytes: int,
) -> Footprint:
    total = sum(sizes.layer_bytes) + sizes.other_bytes + extra_bytes
    words = sizes.vocabulary * VOCABULARY_BYTES_PER_TOKEN
    states = _prompt_cache_bytes(options, sum(kv))
    if not gpu and options.prompt_cache_mb < 0:  # rather a longer context than more conversations
        states = max(0, min(states, room_bytes - total - sum(kv) - compute - words))
    where = f"context {n_ctx} of {sizes.trained_ctx}, cache {sum(kv) / MIB:.0f} MiB"
    if not gpu:
        placement = Placement(n_ctx, 0, states)
        return Footprint(total, sum(kv) + compute + states + words, 0, placement, f"{where}, all in RAM.")
    on_gpu = max(0, layers - 1)
    first = sizes.layers - on_gpu
    weights = sum(sizes.layer_bytes[first:]) + (sizes.output_bytes if layers else 0) + (extra_bytes if layers else 0)
    cache = sum(kv[first:]) if options.offload_kqv else 0
    host = total - sum(sizes.layer_bytes[first:]) + sum(kv) - cache + states + words
    reason = f"{where}, {on_gpu} of {sizes.layers} layers on the GPU."
    return Footprint(weights, cache + (compute if layers else 0), host, Placement(n_ctx, layers, states), reason)


def _prompt_cache_bytes(options: ChatLoadOptions, kv_bytes: int) -> int:
    """RAM for saved states: as asked, or one full cache for all other conversations together, at most 1 GiB."""
    if options.prompt_cache_mb >= 0:
        return options.prompt_cache_mb * MIB
    return min(kv_bytes, MAX_AUTO_PROMPT_CACHE_BYTES)
