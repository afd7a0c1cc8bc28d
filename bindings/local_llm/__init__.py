"""Chat for the LoLLMS host: GGUF models written and read in this process by `lollms_local`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_llm_binding import LollmsLLMBinding
from lollms_client.lollms_types import MSG_TYPE

from lollms_local import host_chat, weights
from lollms_local.engines import engine_class
from lollms_local.engines.llama.files import find_projector, projectors
from lollms_local.errors import Cancelled, LocalModelError
from lollms_local.host import LocalBinding, edge
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.chat import (
    ChatLoadOptions,
    ChatModel,
    ChatOptions,
    ChatRequest,
    ChatResult,
    Piece,
    Vocabulary,
)
from lollms_local.runtime import Job, get_runtime

BindingName = "LocalLLM"
TITLE = "Local chat (llama.cpp)"
DESCRIPTION = (
    "Runs GGUF language models in this process with llama.cpp, offline. Streaming, tools, JSON schemas, embeddings."
)
DESCRIBED_METHODS = ("generate_text", "generate_from_messages")


class LocalLLM(LocalBinding[ChatModel], LollmsLLMBinding):
    """The host's language model contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "llm"
    load_options: ClassVar[type[LoadOptions]] = ChatLoadOptions
    call_options: ClassVar[type[ChatOptions]] = ChatOptions
    default_model: ClassVar[str] = "smollm2-135m-instruct"
    lists_records: ClassVar[bool] = True

    #: contexts of loaded models, by their key in the manager: asked for often, and a lease would wait for an answer
    _contexts: ClassVar[dict[Any, int]] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._configured_ctx = self.config.get("ctx_size")
        self.set_forced_ctx_size(getattr(self, "forced_ctx_size", None))
        self.tp = _text_processor(self)
        self.vision_enabled = self._sees()

    # --- generation -------------------------------------------------------------------------------------------

    @edge
    def generate_text(
        self,
        prompt: str = "",
        images: Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        system_prompt: str | None = "",
        streaming_callback: Callable[..., Any] | None = None,
        split: bool | None = False,
        user_keyword: str | None = "!@>user:",
        ai_keyword: str | None = "!@>assistant:",
        raw: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Answer a prompt, by the model's chat template.

        Args:
            prompt: the user's words; with `split` a whole discussion in the host's notation.
            images: bytes, base64, data URLs or paths; only for models with a projector.
            system_prompt: the system message.
            streaming_callback: told every piece as `(text, MSG_TYPE)`; stops the answer by returning False.
            split: cut the prompt into messages at the keywords.
            raw: no template: continue the prompt as it stands.
            **kwargs: any field of `ChatOptions`; `grammar`, `json_schema`, `response_format`, `tools`, `tool_choice`,
                `extra_body`, `chat_template_kwargs`, `cancelled`.

        Returns:
            The answer. If the model calls tools: `{"content", "tool_calls", "finish_reason"}` in OpenAI's form.
        """
        if raw:
            text = f"{system_prompt}\n\n{prompt}" if system_prompt else prompt
            return self._answer(None, text, images, streaming_callback, kwargs)
        if split:
            keywords = {"user_keyword": user_keyword or "!@>user:", "ai_keyword": ai_keyword or "!@>assistant:"}
            messages = self.split_discussion(prompt, **keywords)
        else:
            messages = [{"role": "user", "content": prompt}]
        if system_prompt:
            messages = [{"role": "system", "content": system_prompt}, *messages]
        return self._answer(host_chat.one_system(messages), None, images, streaming_callback, kwargs)

    @edge
    def generate_from_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Any] | None = None,
        streaming_callback: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer a conversation in the OpenAI form; arguments and result as for `generate_text`."""
        return self._answer(host_chat.one_system(messages), None, images, streaming_callback, kwargs)

    def chat(self, discussion: Any, branch_tip_id: str | None = None, **kwargs: Any) -> Any:
        """Answer a discussion: the call of hosts up to 1.14 and of the written guide."""
        return self.generate_from_messages(discussion.export("openai_chat", branch_tip_id), **kwargs)

    _chat = chat

    def _answer(
        self,
        messages: Sequence[Mapping[str, Any]] | None,
        prompt: str | None,
        images: Sequence[Any] | None,
        callback: Callable[..., Any] | None,
        given: Mapping[str, Any],
    ) -> Any:
        self.reset_cancel()  # the host leaves it set after a cancel
        placed, pictures = host_chat.place_images(messages, images)
        request = ChatRequest(
            messages=placed,
            prompt=prompt,
            images=pictures,
            grammar=given.get("grammar") or None,
            json_schema=host_chat.read_schema(given),
            tools=tuple(given.get("tools") or ()),
            tool_choice=host_chat.read_tool_choice(given.get("tool_choice")),
            template_kwargs=host_chat.template_variables(given),
        )
        tell = callback or self.config.get("streaming_callback")
        written: list[str] = []

        def sink(piece: Piece) -> bool:
            if piece.kind == "answer":
                written.append(piece.text)
            kind = MSG_TYPE.MSG_TYPE_CHUNK if piece.kind == "answer" else MSG_TYPE.MSG_TYPE_THOUGHT_CHUNK
            return not callable(tell) or tell(piece.text, kind) is not False

        def use(model: ChatModel, options: ChatOptions, control: Control) -> ChatResult:
            written.clear()
            self._contexts[self.job().key] = model.info.context_tokens
            return model.generate(request, options, control, sink)

        try:
            result = self.run(use, _without_kind(given))
        except Cancelled:
            return "".join(written)  # what the user has already read
        return host_chat.tool_message(result) if result.tool_calls else result.text

    def cancel(self) -> None:
        """Stop at once, also while a prompt is being read; what was written so far is returned."""
        LollmsLLMBinding.cancel(self)
        LocalBinding.cancel(self)

    # --- tokens and vectors -----------------------------------------------------------------------------------

    @edge
    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._with_vocabulary(lambda vocabulary: vocabulary.tokenize(text))

    @edge
    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self._with_vocabulary(lambda vocabulary: vocabulary.detokenize(tokens))

    @edge
    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._with_vocabulary(lambda vocabulary: vocabulary.tokenize(text)))

    def _with_vocabulary(self, use: Callable[[Vocabulary], Any]) -> Any:
        """Only the vocabulary is loaded for that: no weights, and no waiting while the model writes."""
        return self._installing(self.job(), lambda: get_runtime().call(self._vocabulary_job(), use))

    def _vocabulary_job(self) -> Job:
        spec = self.spec()
        if spec.engine != "llama_cpp":
            return self.job()
        return Job(
            spec=spec.model_copy(update={"engine": "llama_cpp_vocabulary"}),
            options=LoadOptions(device="cpu"),
            models_dir=self._models_dir(),
            holder=self.binding_name,
        )

    @edge
    def embed(self, text: Any, **kwargs: Any) -> list[Any]:
        """The vector of a text, or one vector per text of a list; of length 1 unless `normalize=False`."""
        texts = [text] if isinstance(text, str) else [str(t) for t in text]
        normalise = bool(kwargs.get("normalize", kwargs.get("normalise", True)))
        dedicated = self.options(kwargs, self.spec()).embedding_model or None

        def use(model: ChatModel, options: ChatOptions, control: Control) -> list[list[float]]:
            return model.embed(texts, control, normalise=normalise)

        vectors = self.run(use, kwargs, model=dedicated)
        return vectors[0] if isinstance(text, str) else vectors

    # --- about the model --------------------------------------------------------------------------------------

    @edge
    def get_model_info(self) -> dict[str, Any]:
        """Name, architecture, sizes and abilities, from the file's header; nothing is loaded for that."""
        job = self.job()
        engine = self._installing(job, lambda: engine_class(job.spec.engine))
        facts = engine.describe(weights.locate(job.spec, job.models_dir), job.options)
        loaded = get_runtime().is_loaded(job)
        more = {"model_name": job.spec.id, "context_size": self._get_ctx_size(), "is_loaded": loaded}
        return {"name": self.binding_name, "host_address": None, **facts, **more}

    def _get_ctx_size(self, model_name: str | None = None) -> int | None:
        """The context in tokens: of the loaded model, else what a load would give now; None if there is no model."""
        try:
            job = self.job(model_name)
            known = self._contexts.get(job.key)
            if known and get_runtime().is_loaded(job):
                return known
            placement = get_runtime().footprint(job)[1].placement
        except LocalModelError as exc:
            self._note(exc, quiet=True)
            return None
        return int(placement.n_ctx) if hasattr(placement, "n_ctx") else None

    def get_context_size(self) -> int | None:
        """The context in tokens; the host's text processor cuts long texts by it."""
        return self.forced_ctx_size or self._get_ctx_size()

    @property
    def forced_context_size(self) -> int | None:
        """The host sets this attribute from a profile, before the first load."""
        return getattr(self, "forced_ctx_size", None)

    @forced_context_size.setter
    def forced_context_size(self, value: Any) -> None:
        self.set_forced_ctx_size(value)

    def set_forced_ctx_size(self, ctx_size: Any) -> None:
        """Load with this context from now on; None = as configured."""
        text = str(ctx_size).strip()
        self.forced_ctx_size = int(float(text)) if text.replace(".", "", 1).isdigit() and float(text) > 0 else None
        if hasattr(self, "_configured_ctx"):
            self.config = {**self.config, "ctx_size": self.forced_ctx_size or self._configured_ctx}

    def _sees(self) -> bool:
        """Whether the configured model comes with a projector; cheap, and never an error."""
        try:
            job = self.job()
            return bool(engine_class(job.spec.engine).sees(weights.locate(job.spec, job.models_dir), job.options))
        except LocalModelError:
            return False  # said when the model is used

    def _find_mmproj(self, model_path: Any) -> Path | None:
        """The projector beside a model file; the host asks to see whether a model can be shown images."""
        unwanted = str(self.config.get("mmproj", "")).lower() == "none"
        return None if unwanted else find_projector(Path(model_path))

    def list_mmproj_models(self) -> list[str]:
        """Projectors in the models folder, for the option `mmproj`."""
        return [str(path) for path in projectors(self.models_dir)]

    @property
    def supports_vision(self) -> bool:
        """The other name that the host asks for."""
        return self.vision_enabled is True

    # --- loading ----------------------------------------------------------------------------------------------

    def load_model(self, model_name: str | None = None) -> bool:
        """Load now; False with the reason in `get_last_error()` on failure."""
        if not super().load_model(model_name):
            return False
        self.vision_enabled = self._sees()
        return True

    def unload_model(self, model_name: str | None = None) -> bool:
        """Free the model, and its vocabulary with it."""
        done = super().unload_model(model_name)
        try:
            get_runtime().unload(self._vocabulary_job())
        except LocalModelError as exc:
            self._note(exc, quiet=True)  # no such model any more: then no vocabulary either
        return done

    def _is_ours(self, info: Any) -> bool:
        """Vocabularies are no models of their own in `ps`."""
        return type(info.key[-1]) is not LoadOptions and super()._is_ours(info)


def _without_kind(given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's options. The host's loop passes `callback` for other things than progress."""
    return {k: v for k, v in given.items() if k != "callback"}


def _text_processor(binding: Any) -> Any:
    """The host's text processor with constrained decoding; None for hosts before 1.9.6, which have none."""
    try:
        from lollms_client.lollms_text_processing import LollmsTextProcessor
    except ImportError:
        return None

    class TextProcessor(host_chat.StructuredText, LollmsTextProcessor):
        """See `StructuredText`."""

    return TextProcessor(binding)


def _self_test() -> int:
    """Ask one question without the client."""
    try:
        binding = LocalLLM()
        print(f"model: {binding.spec().id}, context {binding.get_context_size()}")
        binding.generate_text("Name three fruits.", n_predict=64, streaming_callback=lambda t, k: print(t, end=""))
        print(f"\nembedding of 'cat': {len(binding.embed('cat'))} numbers")
    except LocalModelError as exc:
        print(exc)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_self_test())
