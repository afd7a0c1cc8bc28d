"""`lollms-local transcribe`: write down a recording."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .. import weights
from ..catalog import ModelSpec
from ..engines import engine_class
from ..media import check_audio, write_file
from ..modalities.base import Control, Progress
from ..modalities.transcription import Transcript, TranscriptionLoadOptions, TranscriptionOptions
from ..runtime import Job, Runtime, get_runtime
from .complete import model_names
from .output import AsJson

__all__ = ["register"]

DEFAULT_MODEL = "whisper-tiny.en"

Words = Annotated[bool, typer.Option("--words", help="Time every word too; they show in --format json.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("transcribe", help="Write down what is said in a recording or film.")(transcribe)


def transcribe(
    file: Annotated[Path, typer.Argument(help="WAV, FLAC, MP3, Ogg/Opus, M4A, or a film.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Catalogue id, Hugging Face repository, or path.", autocompletion=model_names
        ),
    ] = "",
    form: Annotated[str, typer.Option("--format", "-f", help="text, segments, srt, vtt or json.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; its ending chooses the format.")
    ] = None,
    language: Annotated[str, typer.Option("--language", "-l", help="en, fr, ...; empty = detect.")] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Into English.")] = False,
    prompt: Annotated[str, typer.Option("--prompt", help="Text that sets spelling and style.")] = "",
    hotwords: Annotated[str, typer.Option("--hotwords", help="Names and terms to listen for.")] = "",
    words: Words = False,
    beam_size: Annotated[int, typer.Option("--beam-size", help="1 = fastest.")] = 5,
    vad: Annotated[bool, typer.Option("--vad/--no-vad", help="Leave out stretches without speech.")] = True,
    batch_size: Annotated[int, typer.Option("--batch-size", help="0 = by the device, 1 = no batches.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N or cpu.")] = "auto",
    compute_type: Annotated[str, typer.Option("--compute-type", help="auto, int8, float16, float32 ...")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    json: AsJson = False,
) -> None:
    """Write down what is said in a recording."""
    runtime = get_runtime()
    spec = _spec(runtime, model)
    wanted = "json" if json else form or _by_ending(output)
    given = {
        "output": wanted, "language": language, "task": "translate" if translate else "transcribe",
        "initial_prompt": prompt, "hotwords": hotwords, "word_timestamps": words, "beam_size": beam_size,
        "vad_filter": vad, "batch_size": batch_size,
    }  # fmt: skip
    options = TranscriptionOptions.merge(given, spec.defaults)
    shape = {"device": device, "compute_type": compute_type, "batch_size": batch_size}
    load = TranscriptionLoadOptions.merge(shape, spec.defaults)
    engine_class(spec.engine)  # a missing library and a bad recording are said before a model is loaded
    check_audio(file)
    with _bar(quiet) as control:
        transcript: Transcript = runtime.call(
            Job(spec, load, runtime.models_dir, holder="command line"),
            lambda engine: engine.transcribe(file, options, control),
            options.shape,
        )
    text = transcript.render(options.output)
    if output is not None:
        write_file(output, (text + "\n").encode())
        typer.echo(str(output), err=True)
    else:
        typer.echo(text)


def _spec(runtime: Runtime, model: str) -> ModelSpec:
    """The model named, else the default one, else any that is on this disk."""
    if model:
        return runtime.resolve(model, "stt")
    default = runtime.catalog.get(DEFAULT_MODEL, "stt")
    if weights.is_downloaded(default, runtime.models_dir):
        return default
    return next((spec for spec, here in runtime.models("stt") if here), default)


def _by_ending(output: Path | None) -> str:
    ending = output.suffix.lower().lstrip(".") if output is not None else ""
    return ending if ending in ("srt", "vtt", "json") else "text"


@contextmanager
def _bar(quiet: bool) -> Iterator[Control]:
    """A Control that draws seconds of sound on standard error, if anybody looks at it."""
    if quiet or not sys.stderr.isatty():
        yield Control()
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        task = bars.add_task("loading", total=None)

        def tell(progress: Progress) -> None:
            label = f"{progress.stage} {progress.done:.0f} s"
            bars.update(task, description=label, completed=progress.done, total=progress.total or None)

        yield Control(on_progress=tell)
