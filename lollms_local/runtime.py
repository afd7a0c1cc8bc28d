"""The one place where settings, catalogue, devices and the manager are put together. One Runtime per process."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from . import weights
from .board import Board
from .catalog import Catalog, ModelSpec, builtin_catalog_path
from .devices import GIB, Device, available_devices
from .engines.sniff import default_engine, sniff
from .errors import InsufficientMemory, ModelNotFound
from .footprint import Footprint
from .jobs import Job, Planner
from .ledger import Ledger
from .manager import ModelManager
from .modalities.base import Modality
from .options import Options

__all__ = ["Job", "Runtime", "Settings", "get_runtime", "set_runtime"]

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
        self._planner = Planner(self.manager, shrink=self.settings.shrink)

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

    def lease(self, job: Job, shape: str | None = None) -> AbstractContextManager[Any]:
        """Hold a model: it is loaded if need be and is not evicted until the block ends.

        Args:
            shape: what the work is like, for the ledger: the `shape` of the call's options.

        Raises:
            LocalModelError: every refusal comes before anything is evicted; see `errors`.
        """
        return self.manager.lease(job.key, shape=shape, **self._planner.terms(job))

    def call(self, job: Job, use: Callable[[Any], R], shape: str | None = None) -> R:
        """Run `use(model)` under a lease; if memory runs out, idle models make room and it is run once more.

        If it runs out again and the setting `shrink` allows it, the model is loaded in a smaller form for a last try.
        """
        try:
            return self.manager.call(job.key, use, shape=shape, **self._planner.terms(job))
        except InsufficientMemory as exc:
            if not (exc.ran_out and self.settings.shrink and self._planner.degrade(job)):
                raise
        return self.manager.call(job.key, use, shape=shape, **self._planner.terms(job))

    def footprint(self, job: Job) -> tuple[Device, Footprint]:
        """Device and bytes of a job, without loading it. Raises as `lease` would."""
        return self._planner.footprint(job)

    def is_loaded(self, job: Job) -> bool:
        """Cheap: asked before every generation."""
        return self.manager.is_loaded(job.key)

    def unload(self, job: Job) -> bool:
        """Free a model; False, and nothing changed, if it is in use."""
        gone = self.manager.unload(job.key)
        if gone:
            self._planner.forget(job)
        return gone


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
