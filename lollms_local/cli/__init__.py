"""The command `lollms-local`.

Each group of commands is a file of this folder with a function `register(app)`; the list below names them. Exit codes:
0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import Cancelled, LocalModelError
from .output import print_json

__all__ = ["GROUPS", "app", "main"]

#: files of this folder, in the order of the help; a missing one is an error at the first start, not a missing command
GROUPS: tuple[str, ...] = (
    "models",
    "demonstrate",
    "system",
    "doctor",
    "chat",
    "transcribe",
    "speech",
    "music",
    "image",
    "video",
)

app = typer.Typer(
    name="lollms-local",
    help="Local models for the LoLLMS client: chat, images, speech, video and music, in one process, offline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lollms-local {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Nothing of its own; every command has --help."""


for _group in GROUPS:
    importlib.import_module(f"{__name__}.{_group}").register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with an exit code.

    Args:
        arguments: default: the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="lollms-local")  # also under `python -m`, so that completion is installed for it
    except LocalModelError as exc:
        sys.exit(_explain(exc, "--json" in given))
    except OSError as exc:
        if exc.filename is None:
            raise
        sys.exit(_explain(LocalModelError(f"{exc.filename}: {exc.strerror}."), "--json" in given))
    except KeyboardInterrupt:
        sys.exit(130)


def _explain(exc: LocalModelError, as_json: bool) -> int:
    if as_json:
        print_json({"status": "error", "error": type(exc).__name__, "message": exc.message, "hint": exc.hint})
    else:
        typer.secho(exc.message, fg="red", err=True)
        if exc.hint:
            typer.echo(exc.hint, err=True)
    return 130 if isinstance(exc, Cancelled) else 1
