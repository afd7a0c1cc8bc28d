"""Model files on this disk: find, fetch, check and remove them.

A model lives in `<models folder>/<id>/`. It is installed when its manifest is there, and the manifest is the last thing
written before the whole folder is renamed into place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from . import downloads
from .catalog import ModelSpec
from .downloads import DownloadPlan, DownloadProgress, plan
from .errors import LoadError, LocalModelError, ModelNotDownloaded
from .manifest import Manifest, has_all_files, is_installed, sha256_of
from .safety import inside, refuse_pickles

__all__ = [
    "DownloadPlan",
    "DownloadProgress",
    "fetch",
    "is_downloaded",
    "locate",
    "models_dir",
    "plan",
    "remove",
    "verify",
]


def models_dir(override: str | Path = "") -> Path:
    """The override, LOLLMS_LOCAL_MODELS_DIR, or `models` in LOLLMS_SYSTEM_PATH or ~/.lollms_client."""
    chosen = str(override) or os.environ.get("LOLLMS_LOCAL_MODELS_DIR", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    system = os.environ.get("LOLLMS_SYSTEM_PATH", "")
    return (Path(system).expanduser() if system else Path.home() / ".lollms_client").absolute() / "models"


def locate(spec: ModelSpec, models_dir: Path) -> Path:
    """Where a model's files are: a folder, or for a `path:` source what it names.

    Looks in the models folder, then, for a Hugging Face model, in that library's own cache.

    Raises:
        ModelNotDownloaded: they are nowhere; the hint is the command that fetches them.
    """
    found = _find(spec, models_dir)
    if found is not None:
        return found
    if spec.origin.kind == "path":
        raise ModelNotDownloaded(
            f"The model {spec.id!r} should be at {spec.origin.name}, but nothing is there.",
            hint="Correct the path in your models.yaml, or put the file back.",
        )
    name, how = spec.id, spec.id
    if spec.id == spec.origin.name.replace("/", "--"):  # a repository that the catalogue has no id for
        name, how = spec.origin.name, f"{spec.origin.name} --modality {spec.modality}"
    raise ModelNotDownloaded(
        f"The model {name!r} is not in {models_dir}.", hint=f"Run: lollms-local models download {how} --yes"
    )


def is_downloaded(spec: ModelSpec, models_dir: Path) -> bool:
    """Cheap: names and sizes are looked at, no content."""
    return _find(spec, models_dir) is not None


def _find(spec: ModelSpec, models_dir: Path) -> Path | None:
    if spec.origin.kind == "path":
        path = Path(spec.origin.name).expanduser()
        return path if path.exists() else None
    folder = models_dir / spec.id
    if is_installed(spec, folder):
        return folder
    return _in_hub_cache(spec) if spec.origin.kind == "hf" else None


def hub_cache() -> Path:
    """The Hugging Face cache, by that library's own variables; the library is not imported to find out."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "huggingface" / "hub"


def _in_hub_cache(spec: ModelSpec) -> Path | None:
    repository = hub_cache() / ("models--" + spec.origin.name.replace("/", "--"))
    revision = spec.origin.version or "main"
    with contextlib.suppress(OSError):  # a commit is its own name
        revision = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    snapshot = repository / "snapshots" / revision
    return snapshot if has_all_files(spec, snapshot) else None


def fetch(
    spec: ModelSpec,
    models_dir: Path,
    on_progress: Callable[[DownloadProgress], None] | None = None,
    token: str = "",
) -> Path:
    """Make a model present; does nothing if it is.

    Args:
        spec: which.
        models_dir: where to; made if it is not there.
        on_progress: told now and then; an exception that it raises stops the download and reaches the caller.
        token: Hugging Face token for gated models; "" = that library's own settings.

    Returns:
        As `locate`.

    Raises:
        DownloadError: it failed or was refused; what was there before is unchanged, and nothing looks installed.
        ModelNotDownloaded: a `path:` source has nothing there.
    """
    if spec.origin.kind == "path" or is_downloaded(spec, models_dir):
        return locate(spec, models_dir)
    return downloads.download(spec, models_dir, on_progress=on_progress, token=token)


def verify(spec: ModelSpec, models_dir: Path) -> list[str]:
    """Read every file again and compare it with the digest of the catalogue, or the one recorded at the download.

    Returns:
        One sentence per problem; empty = all is well.

    Raises:
        ModelNotDownloaded: it is not here.
    """
    folder = models_dir / spec.id
    ours = spec.origin.kind != "path" and Manifest.read(folder) is not None  # then a missing file is a finding
    path = folder if ours else locate(spec, models_dir)
    problems = []
    pinned = {rule.path: rule.sha256 for rule in spec.files if rule.sha256}
    manifest = Manifest.read(path)
    wanted = {record.path: record.sha256 for record in manifest.files} if manifest else {}
    for name, digest in {**wanted, **pinned}.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing.")
        elif sha256_of(file) != digest:
            problems.append(f"{name} differs from what was published.")
    try:
        refuse_pickles(path)
    except LoadError as exc:
        problems.append(exc.message)
    return problems


def remove(spec: ModelSpec, models_dir: Path) -> int:
    """Delete a model's folder from the models folder. The hub's cache and `path:` sources are left alone.

    Returns:
        Bytes that came free.

    Raises:
        ModelNotDownloaded: there is no such folder.
        LocalModelError: a file could not be deleted.
    """
    folder = models_dir / spec.id
    if spec.origin.kind == "path" or not folder.is_dir() or inside(models_dir, spec.id) != folder:
        where = (
            "It lies in the Hugging Face cache; use that library's tools." if is_downloaded(spec, models_dir) else ""
        )
        raise ModelNotDownloaded(f"The model {spec.id!r} is not in {models_dir}, so nothing was removed.", hint=where)
    size = sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    doomed = models_dir / f".removed-{spec.id}"
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.replace(folder, doomed)  # gone at once, so that a half-deleted model never looks installed
        shutil.rmtree(doomed)
    except OSError as exc:
        raise LocalModelError(f"{folder} could not be removed: {exc.strerror}.", hint="Close what uses it.") from exc
    return size
