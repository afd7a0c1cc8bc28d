"""`lollms-local video`: films from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UnsupportedRequest
from ..media import write_file
from ..modalities.base import Control, Progress
from ..modalities.video import (
    Video,
    VideoLoadOptions,
    VideoOptions,
    read_first_picture,
    read_sound,
    video_bytes,
)
from ..runtime import Job, get_runtime
from .complete import model_names
from .output import AsJson, print_json

__all__ = ["register"]

DEFAULT_MODEL = "wan2.1-t2v-1.3b"
_FORMATS = {".mp4": "mp4", ".webm": "webm", ".gif": "gif"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("video", help="Make a film from text, or from a first picture.")(video)


def video(
    prompt: Annotated[str, typer.Argument(help="What happens in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4, WebM or GIF file, by its name.")] = Path(
        "film.mp4"
    ),
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Catalogue id, Hugging Face repository, or path.", autocompletion=model_names
        ),
    ] = "",
    image: Annotated[Path | None, typer.Option("--image", "-i", help="First picture (Wan TI2V/I2V, LTX).")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", "-a", help="Sound track.")] = None,
    duration: Annotated[float, typer.Option("--duration", "-d", help="Seconds; 0 = the model's usual length.")] = 0.0,
    fps: Annotated[float, typer.Option("--fps", help="Frames per second; 0 = the model's own.")] = 0.0,
    frames: Annotated[int, typer.Option("--frames", help="Number of frames; wins over --duration.")] = 0,
    size: Annotated[str, typer.Option("--size", help='Like "832x480"; default: the model\'s own.')] = "",
    quality: Annotated[str, typer.Option("--quality", help="auto, draft or full; auto = draft on a CPU.")] = "auto",
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps; 0 = what suits the model.")] = 0,
    guidance: Annotated[float, typer.Option("--guidance", help="0 = none, -1 = what suits the model.")] = -1.0,
    negative: Annotated[str, typer.Option("--negative", help="What not to show.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="-1 = random.")] = -1,
    scheduler: Annotated[str, typer.Option("--scheduler", help="unipc, euler, ddim ...; default: its own.")] = "",
    device: Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    json: AsJson = False,
) -> None:
    """Make a film."""
    form = _FORMATS.get(output.suffix.lower())
    if form is None:
        raise UnsupportedRequest(f"{output.name} is no film's name.", hint="End it with .mp4, .webm or .gif.")
    options = VideoOptions.merge(
        {
            "duration": duration,
            "fps": fps,
            "num_frames": frames,
            "size": size,
            "quality": quality,
            "steps": steps,
            "guidance": guidance,
            "negative_prompt": negative,
            "seed": seed,
            "scheduler": scheduler,
            "format": form,
        }
    )
    sound, first = read_sound(audio), read_first_picture(image)
    film = _generate(prompt, model, options, first, device, dtype, quiet)
    write_file(output, video_bytes(film, form, sound))
    _say(film, output, as_json=json)


def _generate(
    prompt: str, model: str, options: VideoOptions, first: Any, device: str, dtype: str, quiet: bool
) -> Video:
    runtime = get_runtime()
    spec = runtime.resolve(model or DEFAULT_MODEL, "ttv")
    load = VideoLoadOptions.merge({"device": device, "dtype": dtype}, spec.defaults)
    job = Job(spec, load, runtime.models_dir, holder="command line")
    with _bars(quiet) as control:
        film: Video = runtime.call(
            job, lambda engine: engine.generate(prompt, options, control, image=first), options.shape
        )
    return film


@contextmanager
def _bars(quiet: bool) -> Iterator[Control]:
    """A Control that draws a bar of steps, then one of decoded chunks, on standard error."""
    if quiet:
        yield Control()
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {"": bars.add_task("loading", total=None)}

        def tell(progress: Progress) -> None:
            if "" in tasks:
                bars.remove_task(tasks.pop(""))
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=None)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total or None)

        yield Control(on_progress=tell)


def _say(film: Video, output: Path, *, as_json: bool) -> None:
    """The file's name, the film's length and the seed that makes it again; notes go to standard error."""
    if as_json:
        row: Mapping[str, Any] = {
            "file": str(output),
            "frames": len(film.frames),
            "fps": film.fps,
            "duration_s": film.duration_s,
            "seed": film.seed,
            "recipe": dict(film.recipe),
            "notes": list(film.notes),
        }
        print_json(row)
        return
    for note in film.notes:
        typer.echo(note, err=True)
    typer.echo(f"{output}  {len(film.frames)} frames, {film.duration_s:.3g} s  seed {film.seed}")
