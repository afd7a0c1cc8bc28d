"""What a download would bring, before its first byte: bytes, licence, gate, room on the disk, and how it will run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from .. import weights
from ..catalog import ModelSpec
from ..devices import select_device
from ..downloads import SPARE_BYTES
from ..engines import missing_packages
from ..errors import DownloadError, LocalModelError
from ..modalities.base import Modality
from ..runtime import get_runtime
from .forecast import Forecast, forecast
from .output import print_table, size

__all__ = ["Offer", "free_disk", "known_bytes", "offers", "purpose_of", "record", "refuse_full_disk", "rows", "show"]


#: the hub's words for what a model does
_PURPOSES: dict[str, Modality] = {
    "text-generation": "llm",
    "image-text-to-text": "llm",
    "feature-extraction": "llm",
    "sentence-similarity": "llm",
    "text-to-image": "tti",
    "image-to-image": "tti",
    "automatic-speech-recognition": "stt",
    "text-to-speech": "tts",
    "text-to-audio": "ttm",
    "text-to-video": "ttv",
    "image-to-video": "ttv",
}


@dataclass(frozen=True)
class Offer:
    """One model that was asked for.

    Attributes:
        plan: what would be fetched; None = it is here, or there is a problem.
        problem: why it cannot be fetched.
    """

    spec: ModelSpec
    plan: weights.DownloadPlan | None = None
    problem: LocalModelError | None = None

    @property
    def gated(self) -> bool:
        """True if its owner asks for a login."""
        return self.spec.gated or bool(self.plan and self.plan.gated)

    @property
    def licence(self) -> str:
        """The catalogue's word, else the repository's own."""
        return self.spec.licence or (self.plan.licence if self.plan else "") or "not stated"

    def runs(self) -> Forecast:
        """How it will run on this machine."""
        weigh = self.plan.total_bytes if self.plan else known_bytes(self.spec)
        missing = tuple(missing_packages(self.spec.engine))
        return forecast(self.spec, weigh, select_device("auto"), get_runtime().manager.room, missing)


def purpose_of(repository: str, token: str) -> Modality | None:
    """What a repository of the hub is for, by its page; None = its page does not say. Raises DownloadError."""
    from ..hub_source import HubSource

    nothing = ModelSpec(id="unknown", modality="llm", engine="llama_cpp", source=f"hf:{repository}")
    return _PURPOSES.get(HubSource().purpose(nothing, token))


def offers(specs: Sequence[ModelSpec], folder: Path, token: str) -> list[Offer]:
    """Ask what each model that is not here would bring; one that cannot be asked does not stop the others."""
    made = []
    for spec in specs:
        if weights.is_downloaded(spec, folder):
            made.append(Offer(spec))
            continue
        try:
            made.append(Offer(spec, weights.plan(spec, token=token)))
        except LocalModelError as exc:
            made.append(Offer(spec, problem=exc))
    return made


def refuse_full_disk(made: Sequence[Offer], folder: Path, free: Callable[[Path], int] | None = None) -> None:
    """Raises DownloadError if all together do not fit on the disk; what an earlier try left counts as fetched."""
    plans = [offer.plan for offer in made if offer.plan]
    parts = sum(p.stat().st_size for o in made for p in (folder / f".partial-{o.spec.id}").rglob("*") if p.is_file())
    needed = sum(plan.total_bytes for plan in plans) - parts
    needed += max((plan.overhead_bytes for plan in plans), default=0) + SPARE_BYTES
    have = (free or free_disk)(folder)
    if plans and needed > have:
        raise DownloadError(
            f"These models need {size(needed)} on the disk of {folder}, and {size(have)} are free.",
            hint="Make room, choose fewer, or choose another folder with LOLLMS_LOCAL_MODELS_DIR.",
        )


def show(made: Sequence[Offer], folder: Path, token: str) -> None:
    """The table for people, and a line with the sum."""
    table = []
    for offer in made:
        fetch = size(offer.plan.total_bytes) if offer.plan else "cannot be" if offer.problem else "is here"
        gate = " (gated)" if offer.gated else ""
        note = "" if offer.spec.verified or offer.plan is None else "not tried by us"
        table.append((offer.spec.id, fetch, offer.licence + gate, offer.runs().words, note))
    print_table(("MODEL", "TO FETCH", "LICENCE", "ON THIS MACHINE", "NOTE"), table)
    for offer in made:
        if offer.problem:
            typer.secho(f"{offer.spec.id}: {offer.problem}", fg="red", err=True)
        elif offer.gated and offer.plan and not token:
            page = f"https://huggingface.co/{offer.spec.origin.name}"
            typer.echo(f"{offer.spec.id} is gated: accept its licence at {page} and set HF_TOKEN first.")
    total = sum(offer.plan.total_bytes for offer in made if offer.plan)
    typer.echo(
        f"{size(total) if total else 'Nothing'} to fetch into {folder}; {size(free_disk(folder))} are free there."
    )


def rows(made: Sequence[Offer], folder: Path) -> list[dict[str, Any]]:
    """The same for scripts."""
    return [
        {
            **record(offer.spec, offer.plan is None and offer.problem is None),
            "licence": offer.licence,
            "gated": offer.gated,
            "fetch_bytes": offer.plan.total_bytes if offer.plan else 0,
            "files": [{"path": f.path, "bytes": f.bytes} for f in offer.plan.files] if offer.plan else [],
            "runs": asdict(offer.runs()),
            "free_disk_bytes": free_disk(folder),
            "error": offer.problem.message if offer.problem else "",
        }
        for offer in made
    ]


def record(spec: ModelSpec, here: bool) -> dict[str, Any]:
    """A model of the catalogue, for scripts."""
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
        "bytes": known_bytes(spec),
        "downloaded": here,
        "verified": spec.verified,
    }


def known_bytes(spec: ModelSpec) -> int:
    """What the catalogue says; 0 = nothing."""
    return sum(rule.bytes for rule in spec.files)


def free_disk(folder: Path) -> int:
    """Free bytes where the folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
