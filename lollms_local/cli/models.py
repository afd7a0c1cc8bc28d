"""`lollms-local models`: list, download, verify, remove, path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .. import weights
from ..catalog import ModelSpec
from ..errors import Cancelled, LocalModelError, ModelNotFound, UnsupportedRequest
from ..modalities.base import MODALITIES, Modality
from ..runtime import get_runtime
from .complete import modalities, model_names, sets
from .offers import Offer, known_bytes, offers, purpose_of, record, refuse_full_disk, rows, show
from .output import AsJson, print_json, print_table, size
from .progress import Bars

__all__ = ["choose", "download_models", "register"]

group = typer.Typer(help="Model files: list, download, verify, remove.", no_args_is_help=True)

Ids = Annotated[
    list[str] | None,
    typer.Argument(help="Catalogue ids, or org/repo on the hub with --modality.", autocompletion=model_names),
]
ModalityOption = Annotated[
    str, typer.Option("--modality", "-m", help="llm, tti, stt, tts, ttv or ttm.", autocompletion=modalities)
]
SetOption = Annotated[
    str, typer.Option("--set", help="A named set: starter, cpu, gpu-8gb, gpu-12gb, gpu-24gb.", autocompletion=sets)
]


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
    found = [row for m in ([wanted] if wanted else MODALITIES) for row in runtime.models(m)]
    found = [(s, here) for s, here in found if (here or not downloaded) and (not model_set or model_set in s.sets)]
    if as_json:
        print_json([record(spec, here) for spec, here in found])
        return
    print_table(
        ("ID", "MODALITY", "ENGINE", "SIZE", "HERE", "LICENCE", "SETS"),
        [
            (s.id, s.modality, s.engine, size(known_bytes(s)), "yes" if here else "", s.licence, " ".join(s.sets))
            for s, here in found
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
    specs = choose(ids or [], modality, model_set, ask=lambda name: purpose_of(name, token))
    download_models(specs, yes=yes, dry_run=dry_run, token=token, quiet=quiet, as_json=as_json)


def download_models(
    specs: list[ModelSpec], *, yes: bool, dry_run: bool, token: str, quiet: bool, as_json: bool
) -> None:
    """Plan, ask, fetch. Raises LocalModelError, typer.Exit and typer.Abort."""
    folder = get_runtime().models_dir
    made = offers(specs, folder, token)
    failures = {offer.spec.id: offer.problem for offer in made if offer.problem}
    if len(specs) == 1 and made[0].problem:
        raise made[0].problem
    if not any(offer.plan for offer in made) and not failures and not as_json:
        typer.echo(f"{', '.join(spec.id for spec in specs)}: already in {folder}")
        return
    if dry_run and as_json:
        print_json(rows(made, folder))
    elif not as_json and (dry_run or not quiet):
        show(made, folder, token)
    if not dry_run or not as_json:
        refuse_full_disk(made, folder)
    if not dry_run:
        _ask_and_fetch(made, folder, token, yes=yes, quiet=quiet, as_json=as_json, failures=failures)
    if failures:
        raise typer.Exit(1)


def _ask_and_fetch(
    made: list[Offer],
    folder: Path,
    token: str,
    *,
    yes: bool,
    quiet: bool,
    as_json: bool,
    failures: dict[str, LocalModelError],
) -> None:
    """Every model, also after one has failed; what fails is added to `failures`."""
    wanted = [offer for offer in made if offer.plan]
    if wanted and not yes and not as_json and not typer.confirm("Fetch them?", default=True):
        raise typer.Abort()
    total = sum(offer.plan.total_bytes for offer in wanted if offer.plan)
    with Bars(quiet=quiet or as_json, total_bytes=total) as bars:
        for offer in wanted:
            try:
                weights.fetch(offer.spec, folder, on_progress=bars.follow(offer.spec.id), token=token)
            except Cancelled:
                raise
            except LocalModelError as exc:
                failures[offer.spec.id] = exc
                typer.secho(f"{offer.spec.id}: {exc}", fg="red", err=True)
    if as_json:
        problems = {name: exc.message for name, exc in failures.items()}
        here = {offer.spec.id: weights.is_downloaded(offer.spec, folder) for offer in made}
        print_json([{**record(o.spec, here[o.spec.id]), "error": problems.get(o.spec.id, "")} for o in made])


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
    ids: Annotated[list[str], typer.Argument(help="Catalogue ids.", autocompletion=model_names)],
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
    model: Annotated[
        str, typer.Argument(help="A model; without one: the models folder.", autocompletion=model_names)
    ] = "",
    modality: ModalityOption = "",
    as_json: AsJson = False,
) -> None:
    """Where models lie."""
    folder = get_runtime().models_dir
    where = weights.locate(choose([model], modality, "")[0], folder) if model else folder
    print_json({"id": model, "path": where}) if as_json else typer.echo(str(where))


def choose(
    ids: list[str], modality: str, model_set: str, ask: Callable[[str], Modality | None] = lambda name: None
) -> list[ModelSpec]:
    """The models that a command line names, each once.

    Args:
        ask: what a repository that is not in the catalogue is for, if that can be known.

    Raises:
        UnsupportedRequest: it names none. ModelNotFound: an id is unknown.
    """
    runtime = get_runtime()
    wanted = _modality(modality)
    if not ids and not wanted and not model_set:
        raise UnsupportedRequest("No model was named.", hint="Give ids, --set starter, or --modality.")
    if ids:
        specs = [runtime.resolve(name, wanted) if wanted else _of_any_modality(name, ask) for name in ids]
    else:
        specs = runtime.catalog.select(modality=wanted, model_set=model_set)
        if not specs:
            raise UnsupportedRequest(f"The set {model_set!r} has no such model.", hint="See: lollms-local models list")
    return list({spec.id: spec for spec in specs}.values())


def _of_any_modality(name: str, ask: Callable[[str], Modality | None]) -> ModelSpec:
    catalog = get_runtime().catalog
    try:
        return catalog.get(name)
    except ModelNotFound as exc:
        if name.count("/") != 1 or name.startswith("/"):
            raise
        found = ask(name)
        if found is not None:
            return get_runtime().resolve(name, found)
        raise UnsupportedRequest(
            f"{name} is not in the catalogue, so nobody has said what it is for.",
            hint=f"Say it, for instance: {name} --modality llm. There are {', '.join(MODALITIES)}.",
        ) from exc


def _modality(text: str) -> Modality | None:
    word = text.strip().lower()
    if not word:
        return None
    for known in MODALITIES:
        if word == known:
            return known
    raise UnsupportedRequest(f"There is no modality {text!r}.", hint=f"There are {', '.join(MODALITIES)}.")
