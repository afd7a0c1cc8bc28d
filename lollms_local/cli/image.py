"""`lollms-local image` and `lollms-local edit`: pictures from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UnsupportedRequest
from ..media import encode_png, write_file
from ..modalities.base import Control, Progress
from ..modalities.image import (
    EditInput,
    ImageLoadOptions,
    ImageOptions,
    ImageResult,
    parse_lora,
    parse_size,
    png_bytes,
    read_edit_input,
    read_recipe,
)
from ..runtime import Job, get_runtime
from .complete import model_names
from .output import AsJson, print_json

__all__ = ["register"]

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Catalogue id, Hugging Face repository, or path.", autocompletion=model_names),
]
Out = Annotated[Path, typer.Option("--output", "-o", help="PNG file; several get the seed in their name.")]
Count = Annotated[int, typer.Option("-n", help="How many, with seeds seed, seed+1, ...")]
Size = Annotated[str, typer.Option("--size", help='Like "512x768"; default: the model\'s own.')]
Steps = Annotated[int, typer.Option("--steps", help="Denoising steps; 0 = what suits the model.")]
Guidance = Annotated[float, typer.Option("--guidance", help="0 = none, -1 = what suits the model.")]
Negative = Annotated[str, typer.Option("--negative", help="What not to show.")]
Seed = Annotated[int, typer.Option("--seed", help="-1 = random.")]
Scheduler = Annotated[str, typer.Option("--scheduler", help="euler, euler_a, dpmpp_2m_karras, ddim, unipc ...")]
LoraOption = Annotated[list[str] | None, typer.Option("--lora", help="LoRA file with weight, like style:0.8.")]
Device = Annotated[str, typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.")]
DType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]

DEFAULT_MODEL = "sd-turbo"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("image", help="Make pictures from text.")(image)
    app.command("edit", help="Change a picture; with --mask only what the mask marks in white.")(edit)


def image(
    prompt: Annotated[str, typer.Argument(help="What to show.")] = "",
    output: Out = Path("picture.png"),
    model: Model = "",
    n: Count = 1,
    grid: Annotated[bool, typer.Option("--grid", help="Also write all of them as one picture.")] = False,
    size: Size = "",
    steps: Steps = 0,
    guidance: Guidance = -1.0,
    negative: Negative = "",
    seed: Seed = -1,
    scheduler: Scheduler = "",
    lora: LoraOption = None,
    from_metadata: Annotated[
        Path | None, typer.Option("--from-metadata", help="Make the picture in this PNG again; other options win.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Make pictures from text."""
    said = _said(n, size, steps, guidance, negative, seed, scheduler, lora)
    recipe: Mapping[str, Any] = {}
    if from_metadata is not None:
        found = read_recipe(from_metadata.read_bytes())
        if found.edited:
            raise UnsupportedRequest(
                f"{from_metadata} was made from another picture.", hint='Use "lollms-local edit" with that picture.'
            )
        prompt, model, recipe = prompt or found.prompt, model or found.model, found.options
    if not prompt.strip():
        raise UnsupportedRequest("There is no prompt.", hint='Give one: lollms-local image "a heron at dawn".')
    result = _generate(prompt, model, said, recipe, EditInput(), device, dtype, quiet)
    _write(result, output, grid=grid, as_json=json)


def edit(
    source: Annotated[list[Path], typer.Argument(help="The picture (some models combine several).")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What it should become.")],
    output: Out = Path("edited.png"),
    mask: Annotated[Path | None, typer.Option("--mask", help="Picture of the same size; white = change.")] = None,
    strength: Annotated[float, typer.Option("--strength", help="0 to 1; -1 = the model's own.")] = -1.0,
    model: Model = "",
    n: Count = 1,
    grid: Annotated[bool, typer.Option("--grid", help="Also write all of them as one picture.")] = False,
    size: Size = "",
    steps: Steps = 0,
    guidance: Guidance = -1.0,
    negative: Negative = "",
    seed: Seed = -1,
    scheduler: Scheduler = "",
    lora: LoraOption = None,
    device: Device = "auto",
    dtype: DType = "auto",
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Change a picture."""
    sources = read_edit_input(source, mask)
    said = {**_said(n, size, steps, guidance, negative, seed, scheduler, lora), "strength": strength}
    result = _generate(prompt, model, said, {}, sources, device, dtype, quiet)
    _write(result, output, grid=grid, as_json=json)


def _said(
    n: int,
    size: str,
    steps: int,
    guidance: float,
    negative: str,
    seed: int,
    scheduler: str,
    lora: Sequence[str] | None,
) -> dict[str, Any]:
    width, height = parse_size(size)
    return {
        "n": n,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative,
        "seed": seed,
        "scheduler": scheduler,
        "loras": tuple(lora or ()),
    }


def _generate(
    prompt: str,
    model: str,
    said: Mapping[str, Any],
    recipe: Mapping[str, Any],
    sources: EditInput,
    device: str,
    dtype: str,
    quiet: bool,
) -> ImageResult:
    runtime = get_runtime()
    spec = runtime.resolve(model or DEFAULT_MODEL, "tti")
    options = ImageOptions.merge(said, recipe, spec.defaults)
    if sources.images and not (said["width"] or said["height"]):
        options = options.model_copy(update={"width": 0, "height": 0})
    loras = [parse_lora(text, runtime.models_dir / "loras") for text in options.loras]
    load = ImageLoadOptions.merge({"device": device, "dtype": dtype}, spec.defaults)
    job = Job(spec, load, runtime.models_dir, holder="command line")
    with _bar(quiet) as control:
        result: ImageResult = runtime.call(
            job, lambda engine: engine.generate(prompt, options, control, edit=sources, loras=loras), options.shape
        )
    for note in result.notes:
        typer.echo(note, err=True)
    return result


@contextmanager
def _bar(quiet: bool) -> Iterator[Control]:
    """A Control that draws a bar of steps on standard error."""
    if quiet:
        yield Control()
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True)) as bars:
        task = bars.add_task("loading", total=None)

        def tell(progress: Progress) -> None:
            bars.update(task, description=progress.stage, completed=progress.done, total=progress.total or None)

        yield Control(on_progress=tell)


def _write(result: ImageResult, output: Path, *, grid: bool, as_json: bool) -> None:
    """Write the files and say their names and seeds."""
    several = len(result.images) > 1
    rows = []
    for index, made in enumerate(result.images):
        file = output.with_name(f"{output.stem}-{made.seed}{output.suffix or '.png'}") if several else output
        write_file(file, png_bytes(result, index))
        rows.append({"file": str(file), "seed": made.seed})
    if grid and several:
        file = output.with_name(f"{output.stem}-grid{output.suffix or '.png'}")
        write_file(file, encode_png(_grid([image.pixels for image in result.images])))
        rows.append({"file": str(file), "seed": None})
    if as_json:
        print_json({"images": rows, "recipe": dict(result.recipe), "notes": list(result.notes)})
        return
    for row in rows:
        typer.echo(f"{row['file']}" + (f"  seed {row['seed']}" if row["seed"] is not None else ""))


def _grid(pictures: Sequence[Any]) -> Any:
    """uint8 [rows * height, columns * width, 3]; as square as it gets, empty places black."""
    import numpy as np

    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[:2]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    return sheet
