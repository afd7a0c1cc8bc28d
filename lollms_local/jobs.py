"""What is leased, and how it is placed: a job's device, bytes and, where it does not fit, its smaller forms."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from . import weights
from .catalog import ModelSpec
from .devices import Device, select_device
from .engines import engine_class
from .errors import UnsupportedRequest
from .footprint import Footprint
from .manager import ModelManager, Terms
from .modalities.base import LoadOptions
from .offline import offline

__all__ = ["Job", "Planner"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One model with the options that shape it in memory: what is leased."""

    spec: ModelSpec
    options: LoadOptions
    models_dir: Path
    idle_unload_s: float = 0.0
    holder: str = ""

    @property
    def key(self) -> tuple[str, str, str, LoadOptions]:
        """Two jobs with equal keys share one copy in memory."""
        return (self.spec.id, self.spec.source, str(self.models_dir), self.options)


class _Plan(NamedTuple):
    """A form of a model: its options, where it goes, and what makes it smaller than asked for, in words."""

    options: LoadOptions
    device: Device
    footprint: Footprint
    change: str = ""

    @property
    def claims(self) -> dict[str, int]:
        return self.footprint.claims(self.device.pool)


class Planner:
    """Places jobs.

    Args:
        manager: knows what room there is.
        shrink: take a smaller form of a model that does not fit as asked for.
    """

    def __init__(self, manager: ModelManager, *, shrink: bool) -> None:
        self._manager, self._shrink = manager, shrink
        #: the form in which a job was last tried, and the one it must take because memory ran out in a larger one
        self._tried: dict[Hashable, LoadOptions] = {}
        self._degraded: dict[Hashable, LoadOptions] = {}

    def footprint(self, job: Job) -> tuple[Device, Footprint]:
        """Device and bytes of a job. Raises as a lease would."""
        engine = engine_class(job.spec.engine)
        path = weights.locate(job.spec, job.models_dir)
        device = select_device(job.options.device)
        return device, engine.footprint(job.spec, path, device, job.options, self._manager.room(device.pool))

    def terms(self, job: Job) -> dict[str, Any]:
        """The manager's arguments for a job. Nothing is read here: a loaded model costs no look at the disk."""
        chosen: list[_Plan] = []
        way_out: list[str] = []

        def claims() -> dict[str, int]:
            plan, hint = self._choose(job)
            chosen[:], way_out[:] = [plan], [hint]
            self._tried[job.key] = plan.options
            log.info(
                "%s: %s on %s (%s). %s", job.spec.id, job.spec.engine, plan.device.torch_name, plan.device.reason,
                plan.footprint.reason,
            )  # fmt: skip
            return plan.claims

        def load() -> Any:
            options, device, footprint, _ = chosen[0]
            path = weights.locate(job.spec, job.models_dir)
            with offline():
                return engine_class(job.spec.engine).load(job.spec, path, device, options, footprint)

        return {
            "label": job.spec.id,
            "claims": claims,
            "load": load,
            "terms": _terms(job),
            "holder": job.holder,
            "way_out": lambda: " ".join(way_out),
        }

    # --- smaller forms ----------------------------------------------------------------------------------------

    def _choose(self, job: Job) -> tuple[_Plan, str]:
        """The form to load, and what would help if even that does not fit."""
        asked = self._planned(job, self._degraded.get(job.key, job.options))
        if self._has_room(asked):
            return asked, ""
        smaller = next((plan for plan in self._smaller(job, asked) if self._has_room(plan)), None)
        if smaller is None:
            return asked, ""
        if self._shrink and not self._has_room(asked, in_time=True):
            log.warning("%s does not fit as asked for; loaded with %s instead.", job.spec.id, smaller.change)
            return smaller, ""
        return asked, f"With {smaller.change} it fits."

    def degrade(self, job: Job) -> bool:
        """After memory ran out: unload it, to be loaded in the next smaller form; False if there is none, or in use."""
        now = self._planned(job, self._tried.get(job.key, job.options))
        smaller = next(self._smaller(job, now), None)
        if smaller is None:
            return False
        before = self._degraded.get(job.key)
        self._degraded[job.key] = smaller.options  # first, so that nobody loads the large form in between
        if not self._manager.unload(job.key):
            self._degraded.pop(job.key) if before is None else self._degraded.update({job.key: before})
            return before is not None  # somebody else works with a smaller form already
        log.warning("%s ran out of memory; it is loaded with %s for another try.", job.spec.id, smaller.change)
        return True

    def forget(self, job: Job) -> None:
        """It may be loaded as asked for again."""
        self._tried.pop(job.key, None)
        self._degraded.pop(job.key, None)

    def _smaller(self, job: Job, plan: _Plan) -> Iterator[_Plan]:
        """Forms that need less than this one, the best first; see `engines.Shrinkable`."""
        engine = engine_class(job.spec.engine)
        for options, change in engine.smaller(plan.options) if hasattr(engine, "smaller") else ():
            try:
                form = self._planned(job, options)._replace(change=change)
            except UnsupportedRequest:  # an offload where there is no card, for instance
                continue
            if sum(form.claims.values()) < sum(plan.claims.values()) or _less_of_the_card(form, plan):
                yield form

    def _planned(self, job: Job, options: LoadOptions) -> _Plan:
        return _Plan(options, *self.footprint(replace(job, options=options)))

    def _has_room(self, plan: _Plan, *, in_time: bool = False) -> bool:
        """Whether it fits once everything idle has left, or `in_time` when what is in use now has too."""
        return all(count <= self._manager.room(pool, in_time=in_time) for pool, count in plan.claims.items())


def _less_of_the_card(form: _Plan, than: _Plan) -> bool:
    pool = form.device.pool
    return pool != "ram" and form.claims.get(pool, 0) < than.claims.get(pool, 0)


def _terms(job: Job) -> Terms:
    engine = engine_class(job.spec.engine)
    return Terms(
        concurrency=engine.concurrency,
        uses_torch=engine.uses_torch,
        shares_rng=engine.shares_rng,
        idle_unload_s=job.idle_unload_s,
        library=job.spec.engine,
    )
