"""Chat with llama.cpp: GGUF models on CPU and GPU, through llama-cpp-python's ctypes layer.

Not through its `Llama` class: that one gives no abort, keeps one conversation, writes to stderr by swapping the whole
process's file descriptors, and ends the process when a grammar is wrong. The pieces are in `engines.llama`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, cpu_threads
from ..errors import GenerationError, LoadError, ModelBusy, UnsupportedRequest
from ..footprint import Footprint
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.chat import ChatInfo, ChatLoadOptions, ChatOptions, ChatRequest, ChatResult, Piece, PieceSink
from .llama.about import about_file, about_model, template_source
from .llama.context import Context
from .llama.embedding import Embedder
from .llama.files import ModelFiles, has_gpu, model_files
from .llama.generation import generate, obeying
from .llama.live import LiveText
from .llama.native import NativeModel
from .llama.plan import MIN_AUTO_CTX, Placement, Sizes, plan
from .llama.prefix import PromptCache
from .llama.prompt import Prompt, PromptBuilder
from .llama.sampling import Sampler
from .llama.stream import AnswerStream
from .llama.tools import parse_calls
from .llama.vision import Eyes, Seen
from .llama.vision_probe import try_projector
from .llama.vocabulary import Tokens

__all__ = ["LlamaCppChat"]


class LlamaCppChat:
    """A loaded language model; a `ChatModel`. One caller at a time: llama.cpp aborts the process otherwise."""

    modality: ClassVar[Modality] = "llm"
    load_options: ClassVar[type[LoadOptions]] = ChatLoadOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = False
    shares_rng: ClassVar[bool] = False

    def __init__(self, files: ModelFiles, options: ChatLoadOptions, placement: Placement) -> None:
        self._options, self._placement, self._header = options, placement, files.header
        self._busy = threading.Lock()
        self._closed = False
        self._contexts: list[Any] = []
        self._embedder: Embedder | None = None
        self._eyes: Eyes | None = None
        self._cache = PromptCache(placement.prompt_cache_bytes)
        self._sizes = Sizes.of(files.header, files.weights_bytes)
        self._weights_bytes = files.weights_bytes
        self._model = NativeModel(
            files.model,
            n_gpu_layers=placement.n_gpu_layers,
            split_mode=options.split_mode,
            main_gpu=options.main_gpu,
            tensor_split=options.tensor_split,
            use_mmap=options.use_mmap and not files.adapters,
            use_mlock=options.use_mlock,
        )
        try:
            self._tokens = Tokens(self._model)
            self._live = LiveText(self._tokens)
            self._builder = PromptBuilder(self._tokens, template_source(files.header))
            self._context = None if self._sizes.pooled else self._new_context()
            adapters = [(self._model.adapter(path), scale) for path, scale in files.adapters]
            if adapters and self._context is not None:
                self._context.use_adapters(adapters)
            self._adapters = adapters
            if files.mmproj is not None:
                try_projector(files.model, files.mmproj)
                self._eyes = Eyes(
                    self._model, files.mmproj, n_threads=options.n_threads or cpu_threads(),
                    use_gpu=placement.n_gpu_layers > 0,
                )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _new_context(self) -> Context:
        options = self._options
        threads = options.n_threads or cpu_threads()
        context = Context(
            self._model,
            options,
            n_ctx=self._placement.n_ctx,
            n_threads=threads,
            n_threads_batch=options.n_threads_batch or threads,
            shares_cores=not options.n_threads and not options.n_threads_batch,
        )
        self._contexts.append(context)
        return context

    # --- class side -------------------------------------------------------------------------------------------

    @classmethod
    def footprint(
        cls, spec: ModelSpec, path: Path, device: Device, options: ChatLoadOptions, room_bytes: int
    ) -> Footprint:
        """Bytes from the header: weights, cache by formula, one computation, saved states, adapters, projector.

        Raises:
            LoadError: a file is damaged. UnsupportedRequest: the context is out of reach.
        """
        files = model_files(path, options)
        gpu = device.kind != "cpu" and has_gpu()
        footprint = plan(
            Sizes.of(files.header, files.weights_bytes),
            options,
            room_bytes=room_bytes,
            gpu=gpu,
            extra_bytes=files.extra_bytes,
        )
        if device.kind == "cpu" or gpu:
            return footprint
        return replace(
            footprint,
            weights_bytes=0,
            workspace_bytes=0,
            host_bytes=footprint.total_bytes,
            reason=footprint.reason + f" This llama-cpp-python has no support for {device.kind}.",
        )

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: ChatLoadOptions, footprint: Footprint) -> Self:
        """Load it as `footprint` planned."""
        placement = footprint.placement
        if not isinstance(placement, Placement):
            raise LoadError("The plan for this model was made by another engine.", hint="Report this as a bug.")
        return cls(model_files(path, options), options, placement)

    @classmethod
    def smaller(cls, options: ChatLoadOptions) -> Iterator[tuple[ChatLoadOptions, str]]:
        """A context that was asked for, halved again and again; without one the plan has found the longest already."""
        n_ctx = options.ctx_size // 2
        while n_ctx >= MIN_AUTO_CTX:
            yield options.model_copy(update={"ctx_size": n_ctx}), f"ctx_size={n_ctx}"
            n_ctx //= 2

    @classmethod
    def describe(cls, path: Path, options: ChatLoadOptions) -> dict[str, Any]:
        """What the header says about a model: name, architecture, sizes, abilities. Nothing is loaded."""
        return about_file(model_files(path, options))

    @classmethod
    def sees(cls, path: Path, options: ChatLoadOptions) -> bool:
        """Whether it can be shown images: its projector is beside it or named in the options."""
        return model_files(path, options).mmproj is not None

    # --- what it can do ---------------------------------------------------------------------------------------

    @property
    def info(self) -> ChatInfo:
        """What is known about the model and how it was loaded."""
        return about_model(
            self._model,
            self._header,
            self._sizes,
            self._builder.template,
            weights_bytes=self._weights_bytes,
            n_ctx=self._context.n_ctx if self._context else self._sizes.trained_ctx,
            n_gpu_layers=self._placement.n_gpu_layers,
            vision=self._eyes is not None,
        )

    @property
    def cached_states(self) -> tuple[int, int]:
        """Saved states of other conversations, and their bytes."""
        return len(self._cache), self._cache.nbytes

    @property
    def spare_bytes(self) -> Mapping[str, int]:
        """RAM kept for states of other conversations and not used so far; see `engines.Trimmable`.

        States that are held stay: on a CPU a long prompt takes longer to read again than most models to load.
        """
        return {"ram": max(0, self._cache.limit_bytes - self._cache.nbytes)}

    def trim(self) -> None:
        """Keep no more states than there are."""
        self._cache.limit_bytes = self._cache.nbytes

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text; nothing is added."""
        return self._tokens.tokenize(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return self._tokens.detokenize(tokens)

    def generate(self, request: ChatRequest, options: ChatOptions, control: Control, sink: PieceSink) -> ChatResult:
        """Write an answer; see `ChatModel.generate`."""
        with self._turn():
            context = self._chat_context()
            if request.images:
                with self._looking(request, options) as (prompt, seen):
                    return self._sampled(context, prompt, seen, options, control, sink)
            prompt = self._builder.build(request, options, live_text=self._live.held(context))
            return self._sampled(context, prompt, None, options, control, sink)

    @contextmanager
    def _looking(self, request: ChatRequest, options: ChatOptions) -> Iterator[tuple[Prompt, Seen]]:
        """The prompt of a request with images."""
        eyes = self._eyes
        if eyes is None:
            raise UnsupportedRequest(
                "This model cannot see images.", hint="Use a model with a projector (mmproj), or leave images out."
            )
        prompt = self._builder.build(request, options, image_mark=eyes.mark)
        places = prompt.text.count(eyes.mark)
        if places != len(request.images):
            raise UnsupportedRequest(
                f"There are {len(request.images)} images and {places} places for them in the messages.",
                hint="Give each image its own part in a message.",
            )
        add_bos = self._tokens.adds_bos and not prompt.text.startswith(self._tokens.text_of(self._tokens.bos))
        with eyes.split(prompt.text, request.images, add_bos=add_bos) as seen:
            yield replace(prompt, tokens=seen.ids), seen

    def _sampled(
        self, context: Context, prompt: Prompt, seen: Seen | None, options: ChatOptions, control: Control,
        sink: PieceSink,
    ) -> ChatResult:  # fmt: skip
        count = seen.cells if seen is not None else len(prompt.tokens)
        self._refuse_overflow(count, context)
        budget = context.n_ctx - count
        grammar = prompt.grammar(min(budget, options.n_predict) if options.n_predict > 0 else budget)
        with Sampler(self._model, self._tokens, options, grammar) as sampler:
            return self._run(context, prompt, seen, sampler, options, control, sink)

    def _run(
        self,
        context: Context,
        prompt: Prompt,
        seen: Seen | None,
        sampler: Sampler,
        options: ChatOptions,
        control: Control,
        sink: PieceSink,
    ) -> ChatResult:
        thoughts = not prompt.raw and prompt.schema is None  # JSON may well speak of "<think>"
        stream = AnswerStream(options.stop, prompt.closing, split_thoughts=thoughts, calls=prompt.call_marks)
        self._live.forget()
        if not options.cache_prompt:
            context.clear()
        cached = self._cache.prepare(context, prompt.tokens) if options.cache_prompt else 0
        with obeying(context, control):
            if seen is not None and self._eyes is not None:
                self._eyes.read(context, seen, control)
            outcome = generate(
                context, self._tokens, sampler, prompt.tokens, stream, options, control, sink,
                draft_tokens=self._options.draft_tokens if self._options.speculation == "prompt_lookup" else 0,
            )  # fmt: skip
        if seen is None:
            self._live.remember(context, prompt, outcome.written)
        text, calls = parse_calls(stream.answer + stream.hidden, prompt.tools)
        if stream.hidden and not calls:
            sink(Piece("answer", stream.hidden))  # it only looked like a call
        return ChatResult(
            text=text,
            thoughts=stream.thoughts.strip(),
            tool_calls=calls,
            finish_reason="tool_calls" if calls else outcome.reason,
            prompt_tokens=len(prompt.tokens),
            cached_tokens=cached,
            completion_tokens=outcome.completion_tokens,
            prompt_s=outcome.prompt_s,
            generate_s=outcome.generate_s,
        )

    def embed(self, texts: Sequence[str], control: Control, *, normalise: bool = True) -> list[list[float]]:
        """One vector per text: [len(texts)][embedding size]."""
        with self._turn():
            if self._embedder is None:
                pooling = self._header.of_arch("pooling_type")
                options = self._options.model_copy(update={"n_threads": self._options.n_threads or cpu_threads()})
                self._embedder = Embedder(
                    self._model,
                    self._tokens,
                    options,
                    trained_ctx=self._sizes.trained_ctx,
                    pooling=pooling if isinstance(pooling, int) and pooling > 0 else None,
                )
            try:
                return self._embedder.embed(texts, control, normalise=normalise)
            finally:
                if (
                    self._context is not None
                ):  # beside a chat it is memory that no plan counts on: kept for the call only
                    self._embedder.close()
                    self._embedder = None

    # --- guards -----------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The model to oneself. llama.cpp ends the process on a second caller and on use after close."""
        if not self._busy.acquire(blocking=False):
            raise ModelBusy(
                "This model is writing an answer.", hint="Wait for it, and do not generate from within its callback."
            )
        try:
            if self._closed:
                raise GenerationError("This model has been closed.", hint="Load it again.")
            yield
        finally:
            self._busy.release()

    def _chat_context(self) -> Context:
        if self._context is None:
            raise UnsupportedRequest(
                f"{self._header.path.stem} is an embedding model; it cannot write.", hint="Use a chat model."
            )
        return self._context

    @staticmethod
    def _refuse_overflow(count: int, context: Context) -> None:
        if not count:
            raise UnsupportedRequest("The prompt is empty.", hint="Give the model something to continue.")
        if count >= context.n_ctx:
            raise UnsupportedRequest(
                f"The prompt has {count} tokens and the context of this model has room for {context.n_ctx}.",
                hint="Shorten the conversation, or load the model with a larger ctx_size.",
            )

    def close(self) -> None:
        """Give everything back. Idempotent; waits for a running generation."""
        with self._busy:
            self._closed = True
            self._cache.clear()
            if self._embedder is not None:
                self._embedder.close()
                self._embedder = None
            for context in self._contexts:
                context.close()
            self._contexts.clear()
            if self._eyes is not None:
                self._eyes.close()
            self._model.close()
