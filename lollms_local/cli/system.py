"""`lollms-local ps`, `plan`, `link` and `unlink`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..devices import GIB, available_devices, pool_memory
from ..engines import engine_class
from ..linking import BindingState, link, unlink
from ..runtime import Job, get_runtime
from .advice import Situation, advice
from .complete import model_names
from .models import ModalityOption, choose
from .output import AsJson, print_json, print_table, size

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("ps")(ps)
    app.command("plan")(plan)
    app.command("link")(link_bindings)
    app.command("unlink")(unlink_bindings)


def ps(as_json: AsJson = False) -> None:
    """Models in the memory of this process (each program that uses lollms-local has its own)."""
    rows = [
        {
            "model": info.label,
            "state": info.state,
            "memory_bytes": dict(info.claims),
            "leases": info.leases,
            "pinned": info.pinned,
            "idle_s": round(info.idle_s, 1),
        }
        for info in get_runtime().manager.snapshot()
    ]
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo(
            "No model is loaded in this process. A program that embeds lollms-local shows its own by binding.ps()."
        )
    else:
        print_table(("MODEL", "STATE", "MEMORY", "IN USE"), [_ps_row(row) for row in rows])


def _ps_row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    memory = ", ".join(f"{pool} {size(number)}" for pool, number in row["memory_bytes"].items())
    return str(row["model"]), str(row["state"]), memory, str(row["leases"])


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
        raise typer.Exit(1)
