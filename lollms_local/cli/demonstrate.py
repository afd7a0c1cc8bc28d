"""The command `lollms-local demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .demo import Step, run_demo
from .demo_page import render_page
from .output import AsJson, print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page and its files.")] = Path("out/demo"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try every modality that has a model on this machine and write a page with the results."""
    from ..media import write_file

    steps, timeline = run_demo(out, _nothing if quiet or as_json else _tell)
    page = out / "index.html"
    write_file(page, render_page(steps, timeline, __version__).encode())
    if as_json:
        print_json({"page": page, "steps": steps})
    else:
        typer.echo(f"\nThe results: {page}")
    if any(step.state == "failed" for step in steps) or not any(step.state == "done" for step in steps):
        raise typer.Exit(1)


def _nothing(step: Step) -> None:
    """Say nothing."""


def _tell(step: Step) -> None:
    mark = {"done": "done   ", "failed": "FAILED ", "missing": "no model"}[step.state]
    facts = f"{step.model} on {step.device}, {step.load_s + step.work_s:.1f} s" if step.state == "done" else step.model
    typer.echo(f"{step.name:<10} {mark}  {facts}\n           {step.text}")
