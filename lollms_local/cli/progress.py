"""Progress bars: of downloads, one for all, one per model and one for its file; of jobs, one per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from typing_extensions import Self

from ..modalities.base import Control, Progress
from ..weights import DownloadProgress

__all__ = ["Bars", "job_bars"]


class Bars:
    """Bars on standard error; nothing at all when quiet.

    Args:
        quiet: show nothing.
        total_bytes: of all models together; 0 = unknown.
    """

    def __init__(self, *, quiet: bool, total_bytes: int) -> None:
        self._progress: Any = None
        self._total_bytes = total_bytes
        if not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._all = self._progress.add_task("all", total=self._total_bytes or None)
            self._before = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def tasks(self) -> list[Any]:
        """The bars, in their order."""
        return list(self._progress.tasks) if self._progress is not None else []

    def follow(self, model: str) -> Callable[[DownloadProgress], None] | None:
        """A function to give to `weights.fetch` for the next model."""
        if self._progress is None:
            return None
        task = self._progress.add_task(model, total=None)
        part = self._progress.add_task("", total=None, visible=False)
        start = self._before

        def tell(progress: DownloadProgress) -> None:
            doing = {"check": "checking", "convert": "to safetensors", "wait": progress.file}.get(progress.stage, "")
            label = f"{model}: {doing}" if doing else model
            self._progress.update(
                part,
                visible=progress.stage == "fetch" and progress.file_total_bytes > 0,
                description=f"  {progress.file}",
                total=progress.file_total_bytes or None,
                completed=progress.file_done_bytes,
            )
            self._progress.update(
                task, description=label, total=progress.total_bytes or None, completed=progress.done_bytes
            )
            if progress.stage == "fetch":
                self._before = start + progress.done_bytes
                self._progress.update(self._all, completed=self._before)

        return tell


@contextmanager
def job_bars(*, quiet: bool) -> Iterator[Control]:
    """A Control that draws one bar for each stage of a job on standard error, if anybody looks at it."""
    if quiet or not sys.stderr.isatty():
        yield Control()
        return
    from rich.console import Console
    from rich.progress import Progress as Drawn

    with Drawn(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {"": bars.add_task("loading", total=None)}

        def tell(progress: Progress) -> None:
            if "" in tasks:
                bars.remove_task(tasks.pop(""))
            stage = progress.stage or "working"
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], completed=progress.done, total=progress.total or None)

        yield Control(on_progress=tell)
