"""ModelCommands: how a binding lists, fetches and reports models, in the shapes that the host's front ends read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from . import weights
from .catalog import ModelSpec
from .errors import LocalModelError
from .modalities.base import Modality
from .runtime import get_runtime

if TYPE_CHECKING:
    from .weights import DownloadProgress

__all__ = ["ModelCommands"]

Callback = Callable[[dict[str, Any]], Any]


class ModelCommands:
    """Zoo, download, list and `ps` for the models of one modality. Mixed into `LocalBinding`."""

    modality: ClassVar[Modality]
    #: whether list_models gives dictionaries (the host's LLM and image front ends read keys) or plain names
    lists_records: ClassVar[bool] = False
    config: dict[str, Any]

    def _models_dir(self) -> Path:
        raise NotImplementedError

    def _note(self, exc: BaseException, *, quiet: bool = False) -> None:
        raise NotImplementedError

    def list_models(self, **kwargs: Any) -> list[Any]:
        """Every model of this modality, those on this disk first: names, or records with `model_name`."""
        rows = sorted(get_runtime().models(self.modality, self._models_dir()), key=lambda row: not row[1])
        return [_record(spec, here) if self.lists_records else spec.id for spec, here in rows]

    def listModels(self, **kwargs: Any) -> list[Any]:
        """The name that hosts before 1.7 and the written guide use."""
        return self.list_models(**kwargs)

    def list_services(self, **kwargs: Any) -> list[dict[str, Any]]:
        """The one service there is: this process."""
        return [{"name": "local", "caption": "Models on this computer", "help": "Runs in this process, offline."}]

    def get_zoo(self) -> list[dict[str, Any]]:
        """Models that can be downloaded, in the catalogue's order: name, description, size, type, link, licence."""
        return [
            {
                "name": spec.title or spec.id,
                "model_name": spec.id,
                "description": spec.description,
                "size": sum(rule.bytes for rule in spec.files) or "unknown",
                "type": spec.engine,
                "link": _link(spec),
                "license": spec.licence,
                "filename": spec.id,
            }
            for spec in self._zoo()
        ]

    def _zoo(self) -> list[ModelSpec]:
        return [s for s in get_runtime().catalog.select(modality=self.modality) if s.origin.kind != "path"]

    def download_from_zoo(
        self, index: int, progress_callback: Callback | None = None, callback: Callback | None = None
    ) -> dict[str, Any]:
        """Fetch the zoo's entry of that number; the result as `pull_model` gives it."""
        zoo = self._zoo()
        if not 0 <= int(index) < len(zoo):
            return _result(False, f"There is no entry {index}; the zoo has {len(zoo)}, numbered from 0.")
        return self.pull_model(zoo[int(index)].id, progress_callback=progress_callback, callback=callback)

    def pull_model(
        self,
        model_name: str,
        progress_callback: Callback | None = None,
        callback: Callback | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Fetch a model by catalogue id or Hugging Face repository.

        Args:
            model_name: which.
            progress_callback: told dictionaries with `status, message, completed, total, percentage, downloaded_size,
                total_size`; `callback` is the name another front end uses for the same.

        Returns:
            `status` (bool) and `message`; never raises for an expected failure.
        """
        tell = progress_callback or callback
        token = str(kwargs.get("hf_token") or self.config.get("hf_token") or "")
        try:
            spec = get_runtime().resolve(model_name, self.modality, self._models_dir())
            on_progress = (lambda p: tell(_merged(spec, p))) if callable(tell) else None
            path = weights.fetch(spec, self._models_dir(), on_progress=on_progress, token=token)
        except LocalModelError as exc:
            self._note(exc)
            return _result(False, str(exc))
        return _result(True, f"{spec.id} is ready in {path}.", model_name=spec.id)

    def install_model(
        self,
        model_name: str,
        progress_callback: Callback | None = None,
        callback: Callback | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The same as `pull_model`; the host knows both names."""
        return self.pull_model(model_name, progress_callback=progress_callback, callback=callback, **kwargs)

    def ps(self) -> list[dict[str, Any]]:
        """Models of this modality that are in memory, whoever in this process loaded them."""
        return [_row(info) for info in get_runtime().manager.snapshot() if self._is_ours(info)]

    def _is_ours(self, info: Any) -> bool:
        catalog = get_runtime().catalog
        if info.label in catalog:
            return bool(catalog.get(info.label).modality == self.modality)
        return info.key in getattr(self, "_used", {})


def _record(spec: ModelSpec, here: bool) -> dict[str, Any]:
    return {
        "model_name": spec.id,
        "display_name": spec.title or spec.id,
        "description": spec.description,
        "downloaded": here,
        "license": spec.licence,
        "owned_by": spec.source,
    }


def _link(spec: ModelSpec) -> str:
    origin = spec.origin
    return (
        f"https://huggingface.co/{origin.name}" if origin.kind == "hf" else f"https://pypi.org/project/{origin.name}/"
    )


def _result(status: bool, message: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "success": status, "message": message, **({} if status else {"error": message}), **more}


def _merged(spec: ModelSpec, progress: DownloadProgress) -> dict[str, Any]:
    """A download's progress with the keys of all three front ends; sizes in bytes, never None."""
    done, total = progress.done_bytes, progress.total_bytes
    return {
        "status": "downloading",
        "message": f"{spec.id}: {progress.file}",
        "completed": done,
        "total": total,
        "percentage": 100.0 * done / total if total else 0.0,
        "downloaded_size": done,
        "total_size": total,
    }


def _row(info: Any) -> dict[str, Any]:
    """A resident in the keys of the host's `ps`, and our own."""
    parked = info.state == "parked"
    claims: Mapping[str, int] = info.charged if parked else info.claims
    vram = sum(b for pool, b in claims.items() if pool != "ram")
    return {
        "model_name": info.label,
        "is_loaded": not parked,
        "device": next((pool for pool in claims if pool != "ram"), "cpu"),
        "size": sum(claims.values()),
        "vram_size": vram,
        "size_vram": vram,
        "size_ram": claims.get("ram", 0),
        "gpu_usage_percent": 0.0,
        "cpu_usage_percent": 0.0,
        "ref_count": info.leases,
        "status": "parked" if parked else "active" if info.leases else "idle",
        "active": bool(info.leases),
        "pinned": info.pinned,
        "measured": dict(info.measured),
        "peak": dict(info.peak),
        "load_s": info.load_s,
        "return_s": info.return_s,
        "returned": info.returned,
        "uses": info.uses,
    }
