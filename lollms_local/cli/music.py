"""`lollms-local music`: music from a description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engines import engine_class
from ..media import Audio, decode_audio, encode_audio
from ..modalities.music import Music, MusicLoadOptions, MusicOptions, MusicRequest
from ..runtime import Job, get_runtime
from .complete import model_names
from .output import AsJson, sound_format, write_sound
from .progress import job_bars

__all__ = ["register"]

DEFAULT_MODEL = "musicgen-small"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("music", help="Make music from a description.")(music)


def music(
    prompts: Annotated[list[str], typer.Argument(help="What it sounds like; several rule equal shares of the time.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="WAV, FLAC, MP3, Ogg or Opus file, by its name; - = into the pipe.")
    ] = Path("music.wav"),
    duration: Annotated[float, typer.Option("--duration", "-d", help="Seconds, up to 600.")] = 10.0,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Catalogue id, Hugging Face repository, or path.", autocompletion=model_names
        ),
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="-1 = random.")] = -1,
    guidance: Annotated[float, typer.Option("--guidance", help="1 = off, -1 = the model's own (3).")] = -1.0,
    temperature: Annotated[float, typer.Option("--temperature", help="0 = always the likeliest.")] = -1.0,
    melody: Annotated[Path | None, typer.Option("--melody", help="A sound whose melody is followed.")] = None,
    after: Annotated[Path | None, typer.Option("--continue", help="A sound that is continued.")] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave the continued sound out.")] = False,
    normalise: Annotated[bool, typer.Option("--normalise", help="Scale the loudest peak to 0.97.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    json: AsJson = False,
) -> None:
    """Make music."""
    form = sound_format(output)
    runtime = get_runtime()
    spec = runtime.resolve(model, "ttm") if model else runtime.default(DEFAULT_MODEL, "ttm")
    given = {
        "duration": duration, "seed": seed, "guidance_scale": guidance, "temperature": temperature,
        "include_source": not only_new, "normalise": normalise,
    }  # fmt: skip
    options = MusicOptions.merge(given, spec.defaults)
    load = MusicLoadOptions.merge({"device": device, "dtype": dtype}, spec.defaults)
    engine_class(spec.engine)  # a missing library and a bad sound are said before a model is loaded
    request = MusicRequest(tuple(prompts), _sound(melody), _sound(after))
    job = Job(spec, load, runtime.models_dir, holder="command line")
    with job_bars(quiet=quiet) as control:
        made: Music = runtime.call(job, lambda engine: engine.compose(request, options, control), options.shape)
    facts = {"model": spec.id, "seed": made.seed}
    tags = {name: str(value) for name, value in facts.items()}
    data = encode_audio(made.audio, form, metadata=tags, normalise=options.normalise)
    write_sound(output, data, {"duration_s": made.audio.duration_s, **facts}, as_json=json)


def _sound(file: Path | None) -> Audio | None:
    return None if file is None else decode_audio(file)
