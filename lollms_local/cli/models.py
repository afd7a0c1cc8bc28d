"""`lollms-local models`: list, download, verify, remove, path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import weights
from ..catalog import ModelSpec
from ..devices import select_device
from ..engines import missing_packages
from ..errors import Cancelled, LocalModelError, UnsupportedRequest
from ..modalities.base import MODALITIES, Modality
from ..runtime import get_runtime
from .output import AsJson, print_json, print_table, size
from .progress import Bars

__all__ = ["choose", "download_models", "register"]

group = typer.Typer(help="Model files: list, download, verify, remove.", no_args_is_help=True)

Ids = Annotated[list[str] | None, typer.Argument(help="Catalogue ids, or org/repo on the hub with --modality.")]
ModalityOption = Annotated[str, typer.Option("--modality", "-m", help="llm, tti, stt, tts, ttv or ttm.")]
SetOption = Annotated[str, typer.Option("--set", help="A named set: starter, cpu, gpu-8gb, gpu-12gb, gpu-24gb.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="models")


@group.command("list")
def list_models(
    modality: ModalityOption = "",
    model_set: SetOption = "",
    downloaded: Annotated[bool, typer.Option("--downloaded", help="Only those on this disk.")] = False,
    as_json: AsJson = False,
) -> None:
    """Models of the catalogue and those found in the models folder."""
    runtime = get_runtime()
    wanted = _modality(modality)
    rows = [row for m in ([wanted] if wanted else MODALITIES) for row in runtime.models(m)]
    rows = [(s, here) for s, here in rows if (here or not downloaded) and (not model_set or model_set in s.sets)]
    if as_json:
        print_json([_record(spec, here) for spec, here in rows])
        return
    print_table(
        ("ID", "MODALITY", "ENGINE", "SIZE", "HERE", "LICENCE", "SETS"),
        [
            (s.id, s.modality, s.engine, size(_known_bytes(s)), "yes" if here else "", s.licence, " ".join(s.sets))
            for s, here in rows
        ],
    )


@group.command("download")
def download(
    ids: Ids = None,
    modality: ModalityOption = "",
    model_set: SetOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be fetched.")] = False,
    token: Annotated[str, typer.Option(envvar="HF_TOKEN", help="Hugging Face token, for gated models.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch models; shows first what it will fetch, under which licence, and how each will run here."""
    specs = choose(ids or [], modality, model_set)
    download_models(specs, yes=yes, dry_run=dry_run, token=token, quiet=quiet, as_json=as_json)


def download_models(
    specs: list[ModelSpec], *, yes: bool, dry_run: bool, token: str, quiet: bool, as_json: bool
) -> None:
    """Plan, ask, fetch. Raises LocalModelError, typer.Exit and typer.Abort."""
    folder = get_runtime().models_dir
    missing = [spec for spec in specs if not weights.is_downloaded(spec, folder)]
    plans = {spec.id: weights.plan(spec, token=token) for spec in missing}
    if not missing and not as_json:
        typer.echo(f"{', '.join(spec.id for spec in specs)}: already in {folder}")
        return
    if not quiet and not as_json:
        _show_plan(specs, plans, folder)
    if dry_run:
        if as_json:
            print_json([_planned(spec, plans.get(spec.id), folder) for spec in specs])
        return
    if missing and not yes and not as_json and not typer.confirm("Fetch them?", default=True):
        raise typer.Abort()
    failures = _fetch_all(missing, plans, folder, token, quiet or as_json)
    if as_json:
        problems = {spec.id: exc.message for spec, exc in failures}
        print_json([{**_record(s, weights.is_downloaded(s, folder)), "error": problems.get(s.id, "")} for s in specs])
    for spec, exc in failures:
        typer.secho(f"{spec.id}: {exc}", fg="red", err=True)
    if failures:
        raise typer.Exit(1)


def _fetch_all(
    missing: list[ModelSpec], plans: dict[str, weights.DownloadPlan], folder: Path, token: str, quiet: bool
) -> list[tuple[ModelSpec, LocalModelError]]:
    """Every model, also after one has failed."""
    failures: list[tuple[ModelSpec, LocalModelError]] = []
    with Bars(quiet=quiet, total_bytes=sum(plan.total_bytes for plan in plans.values())) as bars:
        for spec in missing:
            try:
                weights.fetch(spec, folder, on_progress=bars.follow(spec.id), token=token)
            except Cancelled:
                raise
            except LocalModelError as exc:
                failures.append((spec, exc))
    return failures


@group.command("verify")
def verify(ids: Ids = None, modality: ModalityOption = "", as_json: AsJson = False) -> None:
    """Read every file again and compare it with its digest. Without an id: all that are here."""
    folder = get_runtime().models_dir
    specs = choose(ids, modality, "") if ids else [s for s in get_runtime().catalog if weights.is_downloaded(s, folder)]
    found = {spec.id: weights.verify(spec, folder) for spec in specs}
    if as_json:
        print_json([{"id": name, "ok": not problems, "problems": problems} for name, problems in found.items()])
    else:
        for name, problems in found.items():
            typer.echo(f"{name}: {' '.join(problems) if problems else 'whole and unchanged'}")
    if any(found.values()):
        raise typer.Exit(1)


@group.command("remove")
def remove(
    ids: Annotated[list[str], typer.Argument(help="Catalogue ids.")],
    modality: ModalityOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete models from the models folder."""
    folder = get_runtime().models_dir
    specs = choose(ids, modality, "")
    if not yes and not typer.confirm(f"Delete {', '.join(s.id for s in specs)} from {folder}?", default=False):
        raise typer.Abort()
    freed = {spec.id: weights.remove(spec, folder) for spec in specs}
    if as_json:
        print_json([{"id": name, "freed_bytes": number} for name, number in freed.items()])
        return
    for name, number in freed.items():
        typer.echo(f"{name}: removed, {size(number)} are free again")


@group.command("path")
def path(
    model: Annotated[str, typer.Argument(help="A model; without one: the models folder.")] = "",
    modality: ModalityOption = "",
    as_json: AsJson = False,
) -> None:
    """Where models lie."""
    folder = get_runtime().models_dir
    where = weights.locate(choose([model], modality, "")[0], folder) if model else folder
    print_json({"id": model, "path": where}) if as_json else typer.echo(str(where))


def choose(ids: list[str], modality: str, model_set: str) -> list[ModelSpec]:
    """The models that a command line names, each once.

    Raises:
        UnsupportedRequest: it names none. ModelNotFound: an id is unknown.
    """
    runtime = get_runtime()
    wanted = _modality(modality)
    if not ids and not wanted and not model_set:
        raise UnsupportedRequest("No model was named.", hint="Give ids, --set starter, or --modality.")
    if ids:
        specs = [runtime.resolve(name, wanted) if wanted else runtime.catalog.get(name) for name in ids]
    else:
        specs = runtime.catalog.select(modality=wanted, model_set=model_set)
        if not specs:
            raise UnsupportedRequest(f"The set {model_set!r} has no such model.", hint="See: lollms-local models list")
    return list({spec.id: spec for spec in specs}.values())


def _modality(text: str) -> Modality | None:
    word = text.strip().lower()
    if not word:
        return None
    for known in MODALITIES:
        if word == known:
            return known
    raise UnsupportedRequest(f"There is no modality {text!r}.", hint=f"There are {', '.join(MODALITIES)}.")


def _known_bytes(spec: ModelSpec) -> int:
    return sum(rule.bytes for rule in spec.files)


def _record(spec: ModelSpec, here: bool) -> dict[str, Any]:
    return {
        "id": spec.id,
        "modality": spec.modality,
        "engine": spec.engine,
        "title": spec.title,
        "description": spec.description,
        "source": spec.source,
        "licence": spec.licence,
        "gated": spec.gated,
        "sets": spec.sets,
        "bytes": _known_bytes(spec),
        "downloaded": here,
        "verified": spec.verified,
    }


def _planned(spec: ModelSpec, plan: weights.DownloadPlan | None, folder: Path) -> dict[str, Any]:
    return {
        **_record(spec, plan is None),
        "fetch_bytes": plan.total_bytes if plan else 0,
        "files": [{"path": f.path, "bytes": f.bytes} for f in plan.files] if plan else [],
        "runs": _how_it_runs(spec, plan),
        "free_disk_bytes": _free_disk(folder),
    }


def _show_plan(specs: list[ModelSpec], plans: dict[str, weights.DownloadPlan], folder: Path) -> None:
    rows = []
    for spec in specs:
        plan = plans.get(spec.id)
        licence = spec.licence + (" (gated)" if spec.gated else "")
        fetch = size(plan.total_bytes) if plan else "is here"
        rows.append((spec.id, fetch, licence, _how_it_runs(spec, plan), "" if spec.verified else "not tried by us"))
    print_table(("MODEL", "TO FETCH", "LICENCE", "ON THIS MACHINE", "NOTE"), rows)
    total = sum(plan.total_bytes for plan in plans.values())
    typer.echo(
        f"{size(total) if plans else 'Nothing'} to fetch into {folder}; {size(_free_disk(folder))} are free there."
    )


def _how_it_runs(spec: ModelSpec, plan: weights.DownloadPlan | None) -> str:
    """In words: the device, about how much memory, and what is missing. After the download `plan` says it exactly."""
    missing = missing_packages(spec.engine)
    if missing:
        return f"needs {', '.join(missing)}"
    device = select_device("auto")
    weigh = plan.total_bytes if plan else _known_bytes(spec)
    return f"{device.torch_name}, about {size(weigh)} of memory and some to work in"


def _free_disk(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
