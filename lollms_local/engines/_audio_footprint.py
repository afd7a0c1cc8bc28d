"""Bytes that speech and music models work in, from the widths in their config.json. Arithmetic only: nothing is loaded.

A job runs in phases (write codes, decode stage by stage, ...), and each phase is described by the sizes of the tensors
that are alive together at its worst moment. Two rules make a peak of them, see `ram_bytes` and `gpu_bytes`.

The decoders of sound need most: a stage holds `channels * samples` numbers per tensor, here called a unit, and several
units at once. How many was counted in the code of transformers 5 and met by torch's memory profiler (torch 2.13, CPU)
in every digit: 4.5 units for EnCodec of the published width without a convolution beside its blocks, 5 with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..devices import Device
from ..errors import LoadError
from . import _torch

__all__ = [
    "Phase",
    "Work",
    "bark_work",
    "cache",
    "codec_frames",
    "codec_phases",
    "gpu_bytes",
    "musicgen_work",
    "ram_bytes",
    "read_config",
    "vits_phases",
    "work_bytes",
]

#: sizes in bytes of the tensors alive at a phase's worst moment
Phase = Sequence[float]
#: caches of keys and values, and the other phases
Work = tuple[Sequence[Phase], Sequence[Phase]]

#: glibc gives a block of this size pages of its own and returns them when it is freed (set in `memory`)
MAPPED_BYTES = 32 << 20
#: what smaller blocks take of the heap, over their own size: those of a convolution differ by its padding, those of a
#: cache grow by a token, so few fit into the hole of another (seen: 1.2 to 1.9); and what is left of it while large
#: blocks come after them (seen: 0.3 to 1.6, mostly below 1, as the heap's end is given back)
HEAP, HEAP_REST = 1.7, 0.9
#: oneDNN copies a convolution's input and output into blocks of this many channels (AVX-512; 8 with AVX2)
BLOCK = 16
#: what activations take of a GPU over their own size: scratch memory of convolutions, blocks kept by torch's allocator.
#: It is the factor that pictures and films showed (fit.py); for sound it was not measured
GPU_SCRATCH = 1.5
#: workspaces of cuBLAS and cuDNN, and 20 MiB segments that are half used. Set by one measurement on an H100: Bark took
#: 0.56 GB for 5 s of speech, of which its caches and activations are 0.2
GPU_FIXED_BYTES = 384 << 20


def ram_bytes(phases: Iterable[Phase]) -> int:
    """Peak of phases that follow each other, in RAM.

    Large blocks come and go: the largest sum of them counts. Smaller ones live in the heap, which keeps much of what it
    ever held while the large ones are made; that slack is the allocator's and not the model's.
    """
    large = small = 0.0
    for phase in phases:
        large = max(large, sum(size for size in phase if size >= MAPPED_BYTES))
        small = max(small, sum(size for size in phase if size < MAPPED_BYTES))
    return int(max(HEAP * small, large + HEAP_REST * small))


def gpu_bytes(caches: Iterable[Phase], phases: Iterable[Phase]) -> int:
    """Peak on a GPU, on the safe side: blocks of a cache do not serve the decoder, so torch keeps both."""
    work = max((sum(phase) for phase in phases), default=0.0)
    return int(sum(sum(phase) for phase in caches) + GPU_SCRATCH * work + GPU_FIXED_BYTES)


def work_bytes(device: Device, caches: Sequence[Phase], phases: Sequence[Phase]) -> int:
    """What a job adds to the weights, where it runs."""
    return ram_bytes([*caches, *phases]) if device.kind == "cpu" else gpu_bytes(caches, phases)


# --- reading a config -------------------------------------------------------------------------------------------------


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's config as it is; see `_torch.reject_absurd_config` for what is refused."""
    _torch.reject_absurd_config(folder, name)
    return json.loads((folder / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number of a config; `default`, which is transformers' own, if the key is absent.

    Raises:
        LoadError: it is not a positive number.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise LoadError(f"The model's config says {key}={value!r}.", hint="Remove the model and download it again.")
    return value


def numbers(config: Mapping[str, Any], key: str, default: Sequence[int]) -> list[int]:
    """A list of positive whole numbers of a config; see `number`."""
    values = config.get(key, default)
    if not isinstance(values, (list, tuple)) or not values or not all(type(v) is int and v > 0 for v in values):
        raise LoadError(f"The model's config says {key}={values!r}.", hint="Remove the model and download it again.")
    return list(values)


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a config; empty if it is absent, as a folder may leave out what is usual."""
    part = config.get(key)
    return part if isinstance(part, dict) else {}


# --- convolutions -----------------------------------------------------------------------------------------------------


def _convolution(channels_in: float, channels_out: float, channel_bytes: float) -> list[float]:
    """What a convolution of oneDNN makes: a copy of its input and its output, in whole blocks of channels."""
    return [math.ceil(channels / BLOCK) * BLOCK * channel_bytes for channels in (channels_in, channels_out)]


def _transposed(channels_out: float, channel_bytes: float, kernel_over_stride: float) -> list[float]:
    """What an upsampling makes: its output, and the matrix of columns that torch adds up into it."""
    unit = channels_out * channel_bytes
    return [unit, kernel_over_stride * unit]


# --- EnCodec: MusicGen's and Bark's codec -----------------------------------------------------------------------------


def codec_frames(codec: Mapping[str, Any], seconds: float) -> int:
    """Frames of codes in so much sound."""
    hop = math.prod(numbers(codec, "upsampling_ratios", (8, 5, 4, 2)))
    return math.ceil(seconds * number(codec, "sampling_rate", 24_000) / hop)


def codec_phases(codec: Mapping[str, Any], frames: int, width: int) -> list[Phase]:
    """From codes to sound: a phase for each stage of EnCodec's decoder.

    A stage holds in its residual block the block's input, the tensor before the convolution, that tensor padded, and
    what the convolution makes. With `use_conv_shortcut` the worst moment is the convolution beside the block: input,
    the block's result, the padded input, and what it makes.

    Args:
        codec: EnCodec's config.
        frames: of codes, decoded at once.
        width: bytes per number.
    """
    ratios = numbers(codec, "upsampling_ratios", (8, 5, 4, 2))
    filters, compress = number(codec, "num_filters", 32), number(codec, "compress", 2)
    phases: list[Phase] = []
    length = frames
    for stage, ratio in enumerate(ratios, 1):
        before = length * width
        length *= ratio
        row = length * width
        channels = filters * 2 ** (len(ratios) - stage)
        narrow = max(1, channels // compress)
        unit = channels * row
        phases.append([2 * channels * before, *_transposed(channels, row, 2)])
        phases.append([unit, unit, unit, *_convolution(channels, narrow, row)])
        phases.append([unit, narrow * row, narrow * row, *_convolution(narrow, channels, row)])
        if codec.get("use_conv_shortcut", True):
            phases.append([unit, unit, unit, *_convolution(channels, channels, row)])
    return phases


# --- VITS -------------------------------------------------------------------------------------------------------------


def vits_phases(config: Mapping[str, Any], seconds: float, tokens: int, width: int = 4) -> list[Phase]:
    """A piece of text at once: attention among its tokens, then the HiFi-GAN decoder stage by stage.

    While the decoder works, four maps from tokens to frames, which the model made to stretch the text, are still held.

    Args:
        config: VITS's config.
        seconds: length of the sound.
        tokens: of the text, the blanks between letters included.
        width: bytes per number.
    """
    rates = numbers(config, "upsample_rates", (8, 8, 2, 2))
    frames = math.ceil(seconds * number(config, "sampling_rate", 16_000) / math.prod(rates))
    scores = number(config, "num_attention_heads", 2) * tokens * tokens * width
    maps = [frames * tokens * width] * 4
    relative = [
        scores,
        2 * scores,
        2 * scores,
        2 * scores,
    ]  # positions relative to each token: twice as many, and padded
    return [relative, *([*maps, *phase] for phase in hifigan_phases(config, frames, width))]


def hifigan_phases(config: Mapping[str, Any], frames: int, width: int) -> list[Phase]:
    """From a spectrogram to sound: a phase for each stage.

    In a residual block are alive: the stage's input, the sum of the blocks before, the block's own residual, the tensor
    before the convolution, and what the convolution makes: 6 units.
    """
    rates = numbers(config, "upsample_rates", (8, 8, 2, 2))
    kernels = numbers(config, "upsample_kernel_sizes", (16, 16, 4, 4))
    channels = number(config, "upsample_initial_channel", 512)
    phases: list[Phase] = []
    length = frames
    for rate, kernel in zip(rates, kernels, strict=False):
        before = channels * length * width
        length *= rate
        channels = max(1, channels // 2)
        row = length * width
        unit = channels * row
        phases.append([before, before, *_transposed(channels, row, kernel / rate)])
        phases.append([unit, unit, unit, unit, *_convolution(channels, channels, row)])
    return phases


# --- transformers that write codes ------------------------------------------------------------------------------------


def cache(layers: float, hidden: float, tokens: float, width: int, batch: int = 1) -> Phase:
    """Keys and values of each layer, and one more: a step copies a layer's to make it longer by a token."""
    one = batch * hidden * tokens * width
    return [one] * (2 * int(layers) + 1)


def attention(network: Mapping[str, Any], tokens: int, width: int, vocabulary: float) -> list[Phase]:
    """One pass of Bark's transformers over many tokens: scores twice (they are masked or scaled into a new tensor), or
    the two wide tensors of the feed-forward part, or what is said of every token in the vocabulary.
    """
    hidden = number(network, "hidden_size", 768)
    row = hidden * tokens * width
    scores = number(network, "num_heads", 12) * tokens * tokens * width
    return [[scores, scores, *[row] * 6], [4 * row, 4 * row, *[row] * 3], [vocabulary * tokens * width, row]]


# --- Bark -------------------------------------------------------------------------------------------------------------

#: of transformers' generation settings for Bark, which the published models share: tokens of text that the semantic
#: network reads, and the mark after them; tokens that it writes for a piece at most; of them in a second
TEXT, SEMANTIC, SEMANTIC_HZ = 256 + 1, 768, 49.9
#: the coarse network's window (semantic tokens, a mark, its own past) and what it adds to it; the fine network's window
COARSE, COARSE_NEW, FINE = 256 + 1 + 630, 60, 1024
#: codes per second and books of them
CODEC_HZ, BOOKS = 75, 8


def bark_work(config: Mapping[str, Any], settings: Mapping[str, Any], width: int) -> Work:
    """Caches of the two networks that write token by token; then the coarse and the fine network over their windows,
    and the codec over the whole piece.

    Args:
        config: Bark's config.
        settings: its generation_config.json, which says how long a piece may get; empty if there is none.
        width: bytes per number.
    """
    semantic, coarse = section(config, "semantic_config"), section(config, "coarse_acoustics_config")
    fine, codec = section(config, "fine_acoustics_config"), section(config, "codec_config")
    tokens = number(section(settings, "semantic_config"), "max_new_tokens", SEMANTIC)
    lengths = ((semantic, TEXT + tokens), (coarse, COARSE + COARSE_NEW))
    caches = [cache(number(n, "num_layers", 12), number(n, "hidden_size", 768), length, width) for n, length in lengths]
    embedded = number(fine, "hidden_size", 768) * FINE * BOOKS * width
    return caches, [
        *attention(coarse, COARSE, width, number(coarse, "output_vocab_size", 12_096)),
        *attention(fine, FINE, width, number(fine, "output_vocab_size", 1_056)),
        [embedded, embedded],  # every book's embedding, one by one and put together
        *codec_phases(codec, math.ceil(tokens / SEMANTIC_HZ * CODEC_HZ), width),
    ]


# --- MusicGen ---------------------------------------------------------------------------------------------------------

#: tokens of a full window, its delay and its description
MUSIC = 1_600


def musicgen_work(config: Mapping[str, Any], seconds: float, width: int) -> Work:
    """A full window's cache, of two sequences for guidance; then the codec.

    Args:
        config: MusicGen's config.
        seconds: of sound that the codec decodes at once.
        width: bytes per number.

    Raises:
        LoadError: the config is none of a MusicGen.
    """
    decoder, codec = section(config, "decoder"), section(config, "audio_encoder")
    if not decoder or not codec:
        raise LoadError("This is no MusicGen: its config names no decoder or no codec.", hint="Choose another model.")
    melody = number(config, "chroma_length", 235) if "num_chroma" in config else 0  # it stands before the music
    layers, hidden = number(decoder, "num_hidden_layers", 24), number(decoder, "hidden_size", 1_024)
    caches = [cache(layers, hidden, MUSIC + melody, width, batch=2)]
    return caches, codec_phases(codec, codec_frames(codec, seconds), width)
