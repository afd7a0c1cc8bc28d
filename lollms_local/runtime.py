"""The one place where settings, catalogue, devices and the manager are put together. One Runtime per process."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from . import weights
from .board import Board
from .catalog import Catalog, ModelSpec, builtin_catalog_path
from .devices import GIB, Device, available_devices, select_device
from .engines import engine_class
from .engines.sniff import default_engine, sniff
from .errors import ModelNotFound
from .footprint import Footprint
from .ledger import Ledger
from .manager import ModelManager, Terms
from .modalities.base import LoadOptions, Modality
from .offline import offline
from .options import Options

__all__ = ["Job", "Runtime", "Settings", "get_runtime", "set_runtime"]

log = logging.getLogger(__name__)

R = TypeVar("R")
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


class Settings(Options):
    """Process-wide settings; each is read from the environment variable LOLLMS_LOCAL_<NAME IN CAPITALS>."""

    models_dir: str = Field(
        "", description="Folder with models; empty = <LOLLMS_SYSTEM_PATH or ~/.lollms_client>/models."
    )
    ram_budget_gb: float = Field(0.0, ge=0, description="Most RAM that models may take, in GiB; 0 = all but a reserve.")
    vram_budget_gb: float = Field(0.0, ge=0, description="Most memory per GPU, in GiB; 0 = all but a reserve.")
    wait_s: float = Field(120.0, ge=0, description="Longest wait for a model that others use, in seconds.")
    park: bool = Field(True, description="Let weights that leave a GPU wait in RAM while there is room for them.")
    shrink: bool = Field(
        False, description="Load a model that does not fit with a smaller context or number format than asked for."
    )
    eviction: Literal["cost", "lru"] = Field(
        "cost", description="What leaves first: cheapest to bring back, or oldest."
    )

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the variables; raises UnsupportedRequest for a bad value."""
        prefix = "LOLLMS_LOCAL_"
        return cls.merge({name: os.environ.get(prefix + name.upper()) for name in cls.model_fields})


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


class Runtime:
    """Settings, catalogue and manager of a process.

    Args:
        settings: process-wide settings; default: from the environment.
        catalog: the models; default: ours plus `models.yaml` in the models folder.
        manager: the owner of all memory; default: one with the settings' budgets.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        catalog: Catalog | None = None,
        manager: ModelManager | None = None,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.models_dir = weights.models_dir(self.settings.models_dir)
        self.catalog = catalog or Catalog.read(builtin_catalog_path(), self.models_dir / "models.yaml")
        self.manager = manager or ModelManager(
            budgets=self._budgets(),
            wait_s=self.settings.wait_s,
            policy=self.settings.eviction,
            park=self.settings.park,
            board=Board(self.models_dir / ".running"),
            ledger=Ledger(self.models_dir / ".memory.json", context=_what_figures_depend_on()),
        )

    def _budgets(self) -> dict[str, int]:
        budgets = {}
        if self.settings.ram_budget_gb:
            budgets["ram"] = int(self.settings.ram_budget_gb * GIB)
        if self.settings.vram_budget_gb:
            budgets.update({f"cuda:{i}": int(self.settings.vram_budget_gb * GIB) for i in range(16)})
        return budgets

    # --- which model ------------------------------------------------------------------------------------------

    def resolve(self, name: str, modality: Modality, models_dir: Path | None = None) -> ModelSpec:
        """The record of a model by catalogue id, Hugging Face repository, or path.

        A relative path is one below the models folder and may not leave it; an absolute path is the user's own word.

        Raises:
            ModelNotFound: it is none of these; the hint lists near names.
        """
        if name in self.catalog:
            return self.catalog.get(name, modality)
        path = self._path(name, models_dir or self.models_dir)
        if path is not None:
            return self._from_disk(path, modality)
        if _REPOSITORY.match(name):
            try:
                return self.catalog.get(name, modality)
            except ModelNotFound:
                return ModelSpec(
                    id=name.replace("/", "--"),
                    modality=modality,
                    engine=default_engine(modality, name),
                    source=f"hf:{name}",
                )
        return self.catalog.get(name, modality)

    def default(self, name: str, modality: Modality, models_dir: Path | None = None) -> ModelSpec:
        """The catalogue's model of that name if it is on this disk, else any that is, else that one after all."""
        folder = models_dir or self.models_dir
        usual = self.catalog.get(name, modality)
        if weights.is_downloaded(usual, folder):
            return usual
        return next((spec for spec, here in self.models(modality, folder) if here), usual)

    @staticmethod
    def _path(name: str, models_dir: Path) -> Path | None:
        given = Path(name).expanduser()
        if given.is_absolute():
            return given if given.exists() else None
        inside = models_dir / given
        if not name.strip(". ") or ".." in given.parts or not inside.exists():
            return None
        return inside if inside.resolve().is_relative_to(models_dir.resolve()) else None

    @staticmethod
    def _from_disk(path: Path, modality: Modality) -> ModelSpec:
        found = sniff(path)
        if found is not None and found[0] != modality:
            raise ModelNotFound(f"{path} holds a {found[0]} model, not a {modality} model.")
        engine = found[1] if found else default_engine(modality)
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-.") or "model"
        return ModelSpec(id=safe[:120], modality=modality, engine=engine, source=f"path:{path}", verified=True)

    def models(self, modality: Modality, models_dir: Path | None = None) -> list[tuple[ModelSpec, bool]]:
        """All models of a modality, and whether each is on this disk: the catalogue's, then the folder's others."""
        folder = models_dir or self.models_dir
        rows = [(s, weights.is_downloaded(s, folder)) for s in self.catalog.select(modality=modality)]
        known = {s.id for s, _ in rows}
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name.startswith(".") or path.name in self.catalog or path.name in known:
                continue
            found = sniff(path)
            if found is not None and found[0] == modality:
                rows.append((self._from_disk(path, modality).model_copy(update={"title": path.name}), True))
        return rows

    # --- use --------------------------------------------------------------------------------------------------

    def lease(self, job: Job) -> AbstractContextManager[Any]:
        """Hold a model: it is loaded if need be and is not evicted until the block ends.

        Raises:
            LocalModelError: every refusal comes before anything is evicted; see `errors`.
        """
        return self.manager.lease(job.key, **self._plan(job))

    def call(self, job: Job, use: Callable[[Any], R]) -> R:
        """Run `use(model)` under a lease; if memory runs out, idle models make room and it is run once more."""
        return self.manager.call(job.key, use, **self._plan(job))

    def footprint(self, job: Job) -> tuple[Device, Footprint]:
        """Device and bytes of a job, without loading it. Raises as `lease` would."""
        engine = engine_class(job.spec.engine)
        path = weights.locate(job.spec, job.models_dir)
        device = select_device(job.options.device)
        return device, engine.footprint(job.spec, path, device, job.options, self.manager.room(device.pool))

    def is_loaded(self, job: Job) -> bool:
        """Cheap: asked before every generation."""
        return self.manager.is_loaded(job.key)

    def unload(self, job: Job) -> bool:
        """Free a model; False, and nothing changed, if it is in use."""
        return self.manager.unload(job.key)

    def _plan(self, job: Job) -> dict[str, Any]:
        """The manager's arguments for a job. Nothing is read here: a loaded model costs no look at the disk."""
        planned: list[tuple[Device, Footprint, LoadOptions]] = []
        way_out: list[str] = []

        def claims() -> dict[str, int]:
            device, footprint = self.footprint(job)
            options = job.options
            if not self._has_room(device, footprint):
                smaller = self._smaller(job)
                waiting_helps = self._has_room(device, footprint, in_time=True)
                if smaller is not None and self.settings.shrink and not waiting_helps:
                    device, footprint, options = *self.footprint(smaller[0]), smaller[0].options
                    log.warning("%s does not fit as asked for; loaded with %s instead.", job.spec.id, smaller[1])
                elif smaller is not None:
                    way_out[:] = [f"With {smaller[1]} it fits."]
            planned[:] = [(device, footprint, options)]
            log.info(
                "%s: %s on %s (%s). %s",
                job.spec.id, job.spec.engine, device.torch_name, device.reason, footprint.reason,
            )  # fmt: skip
            return footprint.claims(device.pool)

        def load() -> Any:
            device, footprint, options = planned[0]
            path = weights.locate(job.spec, job.models_dir)
            with offline():
                return engine_class(job.spec.engine).load(job.spec, path, device, options, footprint)

        return {
            "label": job.spec.id,
            "claims": claims,
            "load": load,
            "terms": self._terms(job),
            "holder": job.holder,
            "way_out": lambda: " ".join(way_out),
        }

    def _has_room(self, device: Device, footprint: Footprint, *, in_time: bool = False) -> bool:
        """Whether it fits once everything idle has left, or `in_time` when what is in use now has too."""
        claims = footprint.claims(device.pool)
        return all(count <= self.manager.room(pool, in_time=in_time) for pool, count in claims.items())

    def _smaller(self, job: Job) -> tuple[Job, str] | None:
        """The job with the first smaller options that fit, and what they change; see `engines.Shrinkable`."""
        engine = engine_class(job.spec.engine)
        for options, change in engine.smaller(job.options) if hasattr(engine, "smaller") else ():
            smaller = replace(job, options=options)
            if self._has_room(*self.footprint(smaller)):
                return smaller, change
        return None

    @staticmethod
    def _terms(job: Job) -> Terms:
        engine = engine_class(job.spec.engine)
        return Terms(
            concurrency=engine.concurrency,
            uses_torch=engine.uses_torch,
            shares_rng=engine.shares_rng,
            idle_unload_s=job.idle_unload_s,
        )


def _what_figures_depend_on() -> str:
    """Versions of the libraries that hold the memory, and the device: measured bytes of others are no guide."""
    found = []
    for package in ("llama-cpp-python", "torch", "diffusers", "transformers", "ctranslate2", "onnxruntime"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue  # then no model of it has figures
    return "; ".join([*found, *(f"{d.torch_name} {d.name}" for d in available_devices())])


_runtime: Runtime | None = None
_runtime_lock = threading.Lock()


def get_runtime() -> Runtime:
    """The process's Runtime, made on first use."""
    global _runtime
    with _runtime_lock:
        if _runtime is None:
            _runtime = Runtime()
        return _runtime


def set_runtime(runtime: Runtime | None) -> Runtime | None:
    """Replace the process's Runtime (tests, embedding applications); returns the one before."""
    global _runtime
    with _runtime_lock:
        before, _runtime = _runtime, runtime
        return before
