"""`lollms-local speak`: say a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..catalog import ModelSpec
from ..engines import engine_class
from ..errors import UnsupportedRequest
from ..media import encode_audio
from ..modalities.speech import Speech, SpeechLoadOptions, SpeechOptions, check_text
from ..runtime import Job, Runtime, get_runtime
from ..voices import DEFAULT_SPEAKER, Voices
from .complete import model_names
from .output import AsJson, print_json, sound_format, write_sound
from .progress import job_bars

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("speak", help="Say a text, given as an argument or piped in.")(speak)
    app.command("voices", help="List the voices that speak may be asked for.")(voices)


def speak(
    text: Annotated[str, typer.Argument(help="What to say; without it, or for -, it is read from the pipe.")] = "-",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="WAV, FLAC, MP3, Ogg or Opus file, by its name; - = into the pipe.")
    ] = Path("speech.wav"),
    voice: Annotated[str, typer.Option("--voice", "-v", help="See the command voices; empty = the usual one.")] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Catalogue id, Hugging Face repository, or path.", autocompletion=model_names
        ),
    ] = "",
    language: Annotated[str, typer.Option("--language", "-l", help="en, de, ...; empty = the voice's.")] = "",
    speed: Annotated[float, typer.Option("--speed", help="2 = twice as fast; not for Bark.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="-1 = random.")] = -1,
    normalise: Annotated[bool, typer.Option("--normalise", help="Scale the loudest peak to 0.97.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    json: AsJson = False,
) -> None:
    """Say a text."""
    form = sound_format(output)
    words = check_text(_piped() if text == "-" else text)
    runtime = get_runtime()
    spec, chosen = _speaker(runtime, model, voice)
    given = {"voice": chosen, "language": language, "speed": speed, "seed": seed, "normalise": normalise}
    options = SpeechOptions.merge(given, spec.defaults)
    load = SpeechLoadOptions.merge({"device": device, "dtype": dtype}, spec.defaults)
    engine_class(spec.engine)  # a missing library is said before a bar is drawn
    job = Job(spec, load, runtime.models_dir, holder="command line")
    with job_bars(quiet=quiet) as control:
        speech: Speech = runtime.call(job, lambda engine: engine.speak(words, options, control), options.shape)
    facts = {"model": spec.id, "voice": speech.voice, **({"seed": speech.seed} if speech.seed >= 0 else {})}
    tags = {name: str(value) for name, value in facts.items()}
    data = encode_audio(speech.audio, form, metadata=tags, normalise=options.normalise)
    write_sound(output, data, {"duration_s": speech.audio.duration_s, **facts}, as_json=json)


def voices(
    model: Annotated[str, typer.Option("--model", "-m", help="Only this model's.", autocompletion=model_names)] = "",
    json: AsJson = False,
) -> None:
    """List voices, one a line."""
    runtime = get_runtime()
    known = Voices(runtime, runtime.models_dir)
    names = known.of(known.model(model)) if model else known.all()
    if json:
        print_json(names)
    else:
        typer.echo("\n".join(names))


def _piped() -> str:
    """The text on standard input.

    Raises:
        UnsupportedRequest: it is a keyboard, not a pipe; or it is not text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UnsupportedRequest(
            "There is no text to speak.", hint='Give it: lollms-local speak "Hello", or pipe it in.'
        )
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UnsupportedRequest("What was piped in is not text.", hint="Pipe UTF-8 text in.") from exc


def _speaker(runtime: Runtime, model: str, voice: str) -> tuple[ModelSpec, str]:
    """The model and its voice: those named, else the default one, else any that is on this disk."""
    known = Voices(runtime, runtime.models_dir)
    if model:
        return known.settle(known.model(model), voice or (model if "#" in model else ""), fixed=True)
    return known.settle(runtime.default(DEFAULT_SPEAKER, "tts"), voice, fixed=False)
