"""`lollms-local chat` and `lollms-local run`: talk to a language model in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import weights
from ..catalog import ModelSpec
from ..engines import engine_class
from ..errors import Cancelled, LocalModelError, UnsupportedRequest
from ..host_chat import place_images
from ..modalities.base import Control
from ..modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest, ChatResult, Piece
from ..runtime import Job, Runtime, get_runtime
from .complete import model_names
from .output import AsJson, print_json

__all__ = ["register"]

DEFAULT_MODEL = "smollm2-135m-instruct"
HELP = """/clear  begin anew
/system TEXT  set the system message
/again  another answer to the last question
/exit  leave"""

ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="Catalogue id, Hugging Face repository, or path.", autocompletion=model_names),
]
System = Annotated[str, typer.Option("--system", "-s", help="The system message.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", min=0, help="0 = always the likeliest token.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens of an answer; -1 = no bound.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same answer; -1 = another each time.")]
ContextSize = Annotated[int, typer.Option("--ctx-size", "-c", help="Context in tokens; 0 = what suits the model.")]
Think = Annotated[bool, typer.Option("--think", help="Let models that can reason think first; shown on stderr.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 = the machine's cores.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("chat", help="Talk to a language model. Ctrl-C stops an answer, /exit or Ctrl-D leaves.")(chat)
    app.command("run", help="Answer one prompt, from the command line or standard input.")(run)


def run(
    prompt: Annotated[str, typer.Argument(help="The prompt; what is piped in follows it.")] = "",
    model: ModelName = "",
    system: System = "",
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = -1,
    seed: Seed = -1,
    ctx_size: ContextSize = 0,
    think: Think = False,
    threads: Threads = 0,
    device: DeviceName = "auto",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it stands, without a template.")] = False,
    schema: Annotated[Path | None, typer.Option("--schema", help="File with a JSON Schema for the answer.")] = None,
    grammar: Annotated[Path | None, typer.Option("--grammar", help="File with a GBNF grammar for the answer.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture to look at; for models that can. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt."""
    text = _with_piped(prompt)
    if not text.strip():
        raise typer.BadParameter("Give a prompt, or pipe one in.", param_hint="PROMPT")
    talk = _Talk.of(
        model,
        system,
        {"temperature": temperature, "n_predict": max_tokens, "seed": seed, "think": think},
        {"ctx_size": ctx_size, "n_threads": threads, "device": device},
    )
    messages, images = place_images(None if raw else talk.messages(text), image)
    request = ChatRequest(
        messages=messages,
        prompt=text if raw else None,
        images=images,
        json_schema=_json_of(schema) if schema else None,
        grammar=grammar.read_text(encoding="utf-8") if grammar else None,
    )
    result = talk.answer(request, _nothing if as_json else _show)
    if as_json:
        names = ("text", "thoughts", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens")
        speed = result.completion_tokens / result.generate_s if result.generate_s else 0.0
        row = {name: getattr(result, name) for name in names}
        print_json({"model": talk.job.spec.id, **row, "tokens_per_s": round(speed, 1)})
    else:
        typer.echo()


def chat(
    model: ModelName = "",
    system: System = "",
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = -1,
    seed: Seed = -1,
    ctx_size: ContextSize = 0,
    think: Think = False,
    threads: Threads = 0,
    device: DeviceName = "auto",
) -> None:
    """Talk to a language model."""
    talk = _Talk.of(
        model,
        system,
        {"temperature": temperature, "n_predict": max_tokens, "seed": seed, "think": think},
        {"ctx_size": ctx_size, "n_threads": threads, "device": device},
    )
    typer.secho(f"{talk.job.spec.id}. /help lists what else can be typed.", err=True, dim=True)
    while True:
        line = _typed_line()
        if line is None:
            return
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit", "/bye"):
            return
        if command == "/help":
            typer.secho(HELP, err=True, dim=True)
        elif command == "/clear":
            talk.turns.clear()
        elif command == "/system":
            talk.system = rest.strip()
        elif command == "/again" and len(talk.turns) > 1:
            _answer(talk, _dropped(talk.turns))
        elif command.startswith("/"):
            typer.secho(HELP, err=True, dim=True)
        elif line.strip():
            _answer(talk, line)


def _dropped(turns: list[tuple[str, str]]) -> str:
    """Take the last question and its answer away; returns the question."""
    turns.pop()
    return turns.pop()[1]


def _answer(talk: _Talk, question: str) -> None:
    """One turn: shown while it is written, and remembered, also the part before a Ctrl-C."""
    shown: list[str] = []

    def show(piece: Piece) -> None:
        if piece.kind == "answer":
            shown.append(piece.text)
        _show(piece)

    try:
        talk.answer(ChatRequest(messages=talk.messages(question)), show)
    except Cancelled:
        typer.secho(" [stopped]", err=True, dim=True, nl=False)
    except LocalModelError as exc:
        typer.secho(f"{exc.message} {exc.hint}".strip(), err=True, fg="red")
        return
    typer.echo()
    talk.turns += [("user", question), ("assistant", "".join(shown))]


@dataclass
class _Talk:
    """A conversation with one model.

    Attributes:
        turns: (role, text), without the system message.
    """

    runtime: Runtime
    job: Job
    options: ChatOptions
    system: str
    turns: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, model: str, system: str, options: dict[str, Any], load: dict[str, Any]) -> _Talk:
        runtime = get_runtime()
        spec = _spec(runtime, model)
        engine_class(spec.engine)  # a missing library is said before anything is typed
        job = Job(spec, ChatLoadOptions.merge(load, spec.defaults), runtime.models_dir, holder="command line")
        return cls(runtime, job, ChatOptions.merge(options, spec.defaults), system)

    def messages(self, question: str) -> list[dict[str, Any]]:
        first = [("system", self.system)] if self.system else []
        return [{"role": role, "content": text} for role, text in (*first, *self.turns, ("user", question))]

    def answer(self, request: ChatRequest, show: Callable[[Piece], None]) -> ChatResult:
        """Generate in a thread, so that Ctrl-C is heard at once, also while native code runs.

        Raises:
            Cancelled: Ctrl-C.
        """
        stop, done = threading.Event(), threading.Event()
        results: list[ChatResult] = []
        errors: list[BaseException] = []

        def sink(piece: Piece) -> bool:
            show(piece)
            return True

        def work() -> None:
            control = Control(cancelled=stop.is_set)
            try:
                call = self.runtime.call
                results.append(call(self.job, lambda engine: engine.generate(request, self.options, control, sink)))
            except BaseException as exc:  # carried to the caller's thread and raised there
                errors.append(exc)
            finally:
                done.set()

        threading.Thread(target=work, name="lollms-local-chat", daemon=True).start()
        while True:
            try:
                while not done.wait(0.05):  # not thread.join(): interrupted, it takes the thread for ended
                    pass
                break
            except KeyboardInterrupt:
                stop.set()
        if errors:
            raise errors[0]
        return results[0]


def _show(piece: Piece) -> None:
    thought = piece.kind == "thought"
    typer.secho(piece.text, nl=False, err=thought, dim=True if thought else None)
    (sys.stderr if thought else sys.stdout).flush()


def _nothing(piece: Piece) -> None:
    pass


def _typed_line() -> str | None:
    """A line from the terminal or a pipe; None at the end. Ctrl-C at the prompt only begins a new line."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history, where the system has it
    while True:
        try:
            return input("> ")
        except EOFError:
            return None
        except KeyboardInterrupt:
            typer.secho("\n/exit or Ctrl-D leaves.", err=True, dim=True)


def _with_piped(prompt: str) -> str:
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    return "\n\n".join(part for part in (prompt, piped) if part)


def _json_of(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise UnsupportedRequest(f"{path} holds no JSON Schema: {exc}.") from exc
    if not isinstance(schema, dict):
        raise UnsupportedRequest(f"{path} holds no JSON Schema.", hint='It must be an object: {"type": ...}.')
    return schema


def _spec(runtime: Runtime, model: str) -> ModelSpec:
    """The model named, else the default one, else any that is on this disk."""
    if model:
        return runtime.resolve(model, "llm")
    default = runtime.catalog.get(DEFAULT_MODEL, "llm")
    if weights.is_downloaded(default, runtime.models_dir):
        return default
    here: Sequence[ModelSpec] = [spec for spec, present in runtime.models("llm") if present]
    return here[0] if here else default
