"""How commands print: tables for people, JSON for scripts, sizes in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UnsupportedRequest
from ..media import write_file

__all__ = ["AsJson", "print_json", "print_table", "size", "sound_format", "write_sound"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; the first column is never cut, the others fold."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=200)
    console.print(table)


def size(number: int) -> str:
    """Bytes for people, in powers of ten as disks are sold; "?" for 0, which means unknown."""
    if number <= 0:
        return "?"
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit in ("B", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


_SOUND_FORMATS = ("wav", "flac", "mp3", "ogg", "opus")


def sound_format(output: Path) -> str:
    """The sound format that a file's ending names; WAV for "-", which is standard output.

    Raises:
        UnsupportedRequest: it names none.
    """
    ending = output.suffix.lower().lstrip(".")
    if str(output) == "-":
        return "wav"
    if ending not in _SOUND_FORMATS:
        raise UnsupportedRequest(
            f"{output.name} is no sound file's name.", hint=f"End it with .{', .'.join(_SOUND_FORMATS)}; or use -."
        )
    return ending


def write_sound(output: Path, data: bytes, facts: dict[str, Any], *, as_json: bool) -> None:
    """Write a sound to its file or to standard output, and say what it is where that does not disturb.

    Args:
        facts: `duration_s` and whatever else there is to say, by name.
    """
    to_pipe = str(output) == "-"
    if to_pipe:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        write_file(output, data)
    if as_json and not to_pipe:
        print_json({"file": str(output), **facts})
        return
    said = "  ".join(f"{name} {value}" for name, value in facts.items() if name != "duration_s")
    typer.echo(f"{output}  {facts['duration_s']:.3g} s  {said}", err=to_pipe)
