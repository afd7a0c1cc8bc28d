"""`lollms-local ps`, `top`, `plan`, `link` and `unlink`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..board import Board
from ..devices import GIB, available_devices, pool_memory
from ..engines import engine_class
from ..linking import BindingState, link, unlink
from ..runtime import Job, get_runtime
from ..unloading import RETURNED_ENOUGH
from .advice import Situation, advice
from .complete import model_names
from .models import ModalityOption, choose
from .output import AsJson, print_json, print_table, size

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ps")(ps)
    app.command("top")(top)
    app.command("plan")(plan)
    app.command("link")(link_bindings)
    app.command("unlink")(unlink_bindings)


def ps(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay and show every change; Ctrl-C ends it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Models in memory, of every program that uses these models through lollms-local."""
    if watch:
        top()
        return
    rows = _loaded()
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("No model is loaded by any program that uses these models.")
    else:
        print_table(_COLUMNS, [_ps_row(row) for row in rows])


def top(
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Models in memory and what is left, kept up to date; Ctrl-C ends it."""
    from rich.live import Live

    with Live(frame(), screen=sys.stdout.isatty(), auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every_s)
                live.update(frame(), refresh=True)
        except KeyboardInterrupt:
            return


def frame() -> Any:
    """What `top` shows at one moment: memory of each pool, then the models."""
    from rich.console import Group
    from rich.table import Table

    pools = ["ram", *(d.pool for d in available_devices() if d.pool != "ram")]
    lines = []
    for pool in pools:
        memory = pool_memory(pool)
        used = 1 - memory.free_bytes / memory.total_bytes
        lines.append(f"{pool}: {size(memory.free_bytes)} of {size(memory.total_bytes)} free, {used:.0%} used by all")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for row in _loaded():
        table.add_row(*_ps_row(row))
    return Group(*lines, "", table if table.row_count else "No model is loaded.")


_COLUMNS = ("MODEL", "PROGRAM", "PLANNED", "MEASURED", "PEAK", "LOAD", "USES")


def _loaded() -> list[dict[str, Any]]:
    """One row per model and process."""
    import psutil

    rows: list[dict[str, Any]] = []
    for posting in Board(get_runtime().models_dir / ".running").read():
        try:
            program = psutil.Process(posting.pid).name()
        except psutil.Error:
            continue  # it ended just now
        rows += [{"pid": posting.pid, "program": program, **asdict(entry)} for entry in posting.entries]
    return rows


def _ps_row(row: dict[str, Any]) -> tuple[str, ...]:
    planned, measured, peak = (
        ", ".join(f"{pool} {size(number)}" for pool, number in row[key].items())
        for key in ("charged", "measured", "peak")
    )
    notes = ["pinned"] * row["pinned"] + ["parked"] * (row["state"] == "parked")
    if row["returned"] is not None and row["returned"] < RETURNED_ENOUGH:
        notes.append(f"gave back only {max(0, row['returned']):.0%} when it last left")
    model = f"{row['model']} ({', '.join(notes)})" if notes else row["model"]
    return model, f"{row['program']} {row['pid']}", planned, measured, peak, f"{row['load_s']:.1f} s", str(row["uses"])


def plan(
    model: Annotated[str, typer.Argument(help="A downloaded model.", autocompletion=model_names)],
    modality: ModalityOption = "",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Whether a model will run here, how, and how much memory it needs; from its files' headers, nothing is loaded."""
    runtime = get_runtime()
    spec = choose([model], modality, "")[0]
    options = engine_class(spec.engine).load_options.merge({"device": device}, spec.defaults)
    chosen, footprint = runtime.footprint(Job(spec=spec, options=options, models_dir=runtime.models_dir))
    room = {pool: runtime.manager.room(pool) for pool in footprint.claims(chosen.pool)}
    devices = available_devices()
    pools = {pool: pool_memory(pool) for pool in {*room, devices[0].pool}}
    limits = runtime.settings
    budgets = {pool: int(GIB * (limits.ram_budget_gb if pool == "ram" else limits.vram_budget_gb)) for pool in pools}
    now = Situation(spec.modality, chosen, devices[0], footprint, room, pools, budgets)
    fits, better = not now.short, advice(now)
    if as_json:
        print_json(
            {
                "id": spec.id,
                "engine": spec.engine,
                "device": chosen.torch_name,
                "device_reason": chosen.reason,
                "weights_bytes": footprint.weights_bytes,
                "workspace_bytes": footprint.workspace_bytes,
                "host_bytes": footprint.host_bytes,
                "room_bytes": room,
                "fits": fits,
                "reason": footprint.reason,
                "better": better,
            }
        )
        return
    typer.echo(f"{spec.id} ({spec.engine}) on {chosen.torch_name}: {chosen.reason}.")
    typer.echo(f"weights {size(footprint.weights_bytes)}, to work in {size(footprint.workspace_bytes)}")
    for pool, number in footprint.claims(chosen.pool).items():
        typer.echo(f"{pool}: needs {size(number)}, {size(room[pool])} can be had")
    typer.echo(footprint.reason or "")
    typer.echo("It fits." if fits else "It does not fit.")
    for sentence in better:
        typer.echo(f"  -> {sentence}")


def link_bindings(as_json: AsJson = False) -> None:
    """Let the host see our bindings where a plain install does not (editable install, source tree, split folders)."""
    _show(link(), as_json)


def unlink_bindings(as_json: AsJson = False) -> None:
    """Remove what `link` made."""
    _show(unlink(), as_json, must_be_visible=False)


def _show(states: list[BindingState], as_json: bool, must_be_visible: bool = True) -> None:
    if as_json:
        print_json([{"modality": s.modality, "place": s.place, "state": s.state, "visible": s.visible} for s in states])
    else:
        print_table(("MODALITY", "STATE", "PLACE"), [(s.modality, s.state, str(s.place)) for s in states])
    if must_be_visible and not all(state.visible for state in states):
        for state in states:
            if state.state == "foreign":
                typer.echo(state.remedy, err=True)
        raise typer.Exit(1)
