"""Chat: what a language model is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from ..options import Options, auto, choice
from .base import Control, LoadOptions

__all__ = [
    "ChatInfo",
    "ChatLoadOptions",
    "ChatModel",
    "ChatOptions",
    "ChatRequest",
    "ChatResult",
    "Piece",
    "PieceSink",
    "ToolCall",
    "Vocabulary",
]

KvType = Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class ChatLoadOptions(LoadOptions):
    """What shapes a loaded language model."""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_ctx": "ctx_size",
        "context_size": "ctx_size",
        "gpu_layers": "n_gpu_layers",
        "threads": "n_threads",
        "flash_attn": "flash_attention",
        "cache_type_k": "kv_type_k",
        "cache_type_v": "kv_type_v",
        "batch_size": "n_batch",
        "mmap": "use_mmap",
        "mlock": "use_mlock",
    }

    ctx_size: int = auto(0, "Context in tokens; 0 = the model's own, at most 32768 and what fits in memory.", ge=0)
    n_gpu_layers: int = auto(-1, "Layers on the GPU; -1 = as many as fit, 0 = none.", ge=-1)
    n_threads: int = auto(
        0, "CPU threads for one token at a time; 0 = the machine's cores, shared with other jobs.", ge=0, le=512
    )
    n_threads_batch: int = auto(0, "CPU threads for reading the prompt; 0 = the same.", ge=0, le=512)
    n_batch: int = choice(512, "Tokens of the prompt per call.", ge=1, le=16384)
    n_ubatch: int = choice(512, "Tokens per computation; smaller needs less memory.", ge=1, le=16384)
    flash_attention: Literal["auto", "on", "off"] = choice("auto", "Flash attention: auto | on | off.")
    kv_type_k: KvType = choice(
        "f16", "Number format of the key cache: f16 | bf16 | f32 | q8_0 | q5_1 | q5_0 | q4_1 | q4_0."
    )
    kv_type_v: KvType = choice(
        "f16", "Number format of the value cache, as above; a quantised one needs flash attention."
    )
    offload_kqv: bool = choice(True, "Keep the cache of the layers on the GPU there too.")
    rope_scaling: Literal["auto", "none", "linear", "yarn", "longrope"] = choice(
        "auto", "RoPE scaling: auto | none | linear | yarn | longrope. auto = the model's own."
    )
    rope_freq_base: float = auto(0.0, "RoPE base frequency; 0 = the model's own.", ge=0)
    rope_freq_scale: float = auto(0.0, "RoPE frequency factor; 0 = the model's own.", ge=0)
    yarn_orig_ctx: int = auto(0, "YaRN: context the model was trained with; 0 = the model's own.", ge=0)
    split_mode: Literal["layer", "row", "none"] = choice("layer", "Several GPUs: layer | row | none (one GPU).")
    main_gpu: int = auto(0, "The GPU for split_mode none.", ge=0)
    tensor_split: tuple[float, ...] = choice((), "Shares of several GPUs, e.g. 3,1; empty = by their free memory.")
    use_mmap: bool = choice(True, "Map the file instead of reading it.")
    use_mlock: bool = choice(False, "Keep the weights from being swapped out.")
    lora: tuple[str, ...] = choice((), "LoRA adapters (GGUF): paths, each with an optional =weight.")
    mmproj: str = auto("", "Vision projector (GGUF): a path; empty = the one beside the model, none = no vision.")
    prompt_cache_mb: int = auto(
        -1,
        "RAM for the states of other conversations, in MiB; 0 = none, -1 = one full context's, up to 1024.",
        ge=-1,
        le=1 << 20,
    )
    speculation: Literal["off", "prompt_lookup"] = choice(
        "off", "off | prompt_lookup: guess ahead from the prompt. Faster where an answer repeats its prompt."
    )
    draft_tokens: int = choice(8, "Tokens to guess ahead.", ge=1, le=64)


class ChatOptions(Options):
    """One generation's wishes that can also be configured."""

    aliases: ClassVar[Mapping[str, str]] = {
        "max_tokens": "n_predict",
        "max_completion_tokens": "n_predict",
        "typical": "typical_p",
        "repetition_penalty": "repeat_penalty",
        "mirostat_mode": "mirostat",
        "enable_thinking": "think",
    }

    n_predict: int = auto(-1, "Most tokens to write; -1 or 0 = until the answer ends or the context is full.", ge=-1)
    temperature: float = choice(0.7, "Randomness; 0 = always the likeliest token.", ge=0, le=10)
    top_k: int = choice(40, "Choose among the k likeliest tokens; 0 = all.", ge=0)
    top_p: float = choice(
        0.95, "Choose among the likeliest tokens that have this probability together; 1 = all.", ge=0, le=1
    )
    min_p: float = choice(0.05, "Drop tokens less likely than this share of the likeliest; 0 = none.", ge=0, le=1)
    typical_p: float = choice(1.0, "Locally typical sampling; 1 = off.", ge=0, le=1)
    repeat_penalty: float = choice(1.0, "Penalty for tokens of the last repeat_last_n; 1 = none.", gt=0, le=10)
    repeat_last_n: int = choice(64, "Tokens that the penalties look back at; -1 = all.", ge=-1)
    presence_penalty: float = choice(0.0, "Penalty for every token that was there; 0 = none.", ge=-10, le=10)
    frequency_penalty: float = choice(0.0, "The same per occurrence; 0 = none.", ge=-10, le=10)
    mirostat: Literal[0, 1, 2] = choice(0, "Mirostat sampling: 0 | 1 | 2; replaces top_k, top_p and min_p.")
    mirostat_tau: float = choice(5.0, "Mirostat: target surprise.", gt=0)
    mirostat_eta: float = choice(0.1, "Mirostat: learning rate.", gt=0)
    seed: int = auto(-1, "Same seed, same answer; -1 = another each time.", ge=-1, le=2**32 - 2)
    stop: tuple[str, ...] = choice((), "Texts that end the answer; they are not part of it.")
    logit_bias: dict[str, float] = choice({}, 'Token number or text -> added to its logit, e.g. {"15": -100}.')
    think: bool = choice(False, "Let models that can reason think before they answer.")
    reasoning_effort: str = auto("", "low | medium | high, for models that know it.")
    embedding_model: str = auto("", "Model for embeddings: a catalogue id or path; empty = the chat model itself.")
    cache_prompt: bool = choice(True, "Do not read again what is still in memory from earlier turns.")


@dataclass(frozen=True)
class ChatRequest:
    """What to continue, and under which constraints. Exactly one of `messages` and `prompt` is given.

    Attributes:
        messages: roles and contents in the OpenAI form; rendered by the model's own chat template.
        prompt: text to continue as it stands, without a template.
        images: encoded image files, one for each image part of the messages, in their order; those of a prompt come
            before its text. Only for a model with a projector.
        grammar: GBNF that the answer must follow.
        json_schema: JSON Schema that the answer must follow; {} = any JSON.
        tools: functions in the OpenAI form.
        tool_choice: "auto", "none", "required" or the name of a function.
        template_kwargs: variables for the chat template, e.g. {"enable_thinking": False}.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    images: Sequence[bytes] = ()
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A piece of an answer as it is written; never half a character.

    Attributes:
        kind: "answer" or "thought".
        text: not empty.
    """

    kind: Literal["answer", "thought"]
    text: str


#: told every piece; False stops the generation at once
PieceSink = Callable[[Piece], bool]


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants to be called, with its arguments (parsed JSON)."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ChatResult:
    """A finished generation.

    Attributes:
        text: the answer, without thoughts, tool calls and stop texts.
        thoughts: what the model thought first.
        tool_calls: functions it wants to be called.
        finish_reason: "stop" (it ended), "length" (n_predict or the context), "tool_calls", or "sink" (stopped by it).
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that were still in memory.
        completion_tokens: tokens written.
        prompt_s, generate_s: seconds for reading the prompt and for writing.
    """

    text: str
    thoughts: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls", "sink"] = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_s: float = 0.0
    generate_s: float = 0.0


@dataclass(frozen=True)
class ChatInfo:
    """What is known about a loaded model.

    Attributes:
        context_tokens: context it was loaded with.
        trained_context_tokens: context it was trained for.
        embedding_size: numbers per embedding.
    """

    name: str
    architecture: str
    description: str
    parameters: int
    weights_bytes: int
    vocabulary_size: int
    context_tokens: int
    trained_context_tokens: int
    embedding_size: int
    n_gpu_layers: int
    vision: bool
    thinking: bool
    tools: bool
    chat_template: str


class Vocabulary(Protocol):
    """Text to tokens and back; safe to use from several threads."""

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text; special tokens in it count as such; nothing is added."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        ...


class ChatModel(Vocabulary, Protocol):
    """A loaded language model. One caller at a time."""

    @property
    def info(self) -> ChatInfo:
        """What is known about it."""
        ...

    def generate(self, request: ChatRequest, options: ChatOptions, control: Control, sink: PieceSink) -> ChatResult:
        """Write an answer.

        Raises:
            UnsupportedRequest: prompt longer than the context, a bad grammar or schema, images without a projector.
            GenerationError: the library failed. Cancelled: `control` said so.
        """
        ...

    def embed(self, texts: Sequence[str], control: Control, *, normalise: bool = True) -> list[list[float]]:
        """One vector per text: [len(texts)][embedding size]; of length 1 if `normalise`."""
        ...
