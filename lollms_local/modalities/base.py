"""What the six modalities share: their names, the way to follow and stop a job, the options of every load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from typing_extensions import Self

from ..cores import CORES, Batch
from ..errors import Cancelled
from ..options import Options, choice

__all__ = ["MODALITIES", "Control", "LoadOptions", "Modality", "Progress"]

Modality = Literal["llm", "tti", "stt", "tts", "ttv", "ttm"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        done: units finished.
        total: units in all; 0 when nobody can know.
        unit: what is counted: "step", "token", "s" (seconds of media), "piece".
        stage: the part of the job, e.g. "denoise", "decode", "coarse".
        preview: a cheap look at the result so far, if the engine has one: uint8 [height, width, 3].
    """

    done: float
    total: float
    unit: str
    stage: str = ""
    preview: Any = None


@dataclass(frozen=True)
class Control:
    """The caller's hold on a running job. Engines call :meth:`check` at least once per step and never return early.

    Attributes:
        cancelled: polled from the working thread; True means stop now.
        on_progress: told after every step; an exception that it raises stops the job and reaches the caller.
        batch: set for a job that lets others compute first, see `behind_conversations`.
    """

    cancelled: Callable[[], bool] = field(default=lambda: False)
    on_progress: Callable[[Progress], None] | None = None
    batch: Batch | None = None

    def check(self) -> None:
        """Raise `Cancelled` if the caller has asked to stop."""
        if self.cancelled():
            raise Cancelled()

    def report(self, done: float, total: float, unit: str, stage: str = "", preview: Any = None) -> None:
        """Check, tell the caller how far the job is, and let others go first if it is a job that does."""
        self.check()
        if self.on_progress is not None:
            self.on_progress(Progress(done, total, unit, stage, preview))
        if self.batch is not None:
            self.batch.give_way(self.check)

    @contextmanager
    def behind_conversations(self) -> Iterator[Self]:
        """The control of a long job on the CPU: between its steps it waits while someone waits for a shorter one."""
        with CORES.batch() as batch:
            yield replace(self, batch=batch)


class LoadOptions(Options):
    """Options that shape a loaded model. Two loads with unequal LoadOptions are two copies in memory."""

    aliases: ClassVar[Mapping[str, str]] = {}

    device: str = choice("auto", "auto | cuda | cuda:N | mps | cpu. auto = best device found.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = choice(
        "auto", "Number format of the weights: auto | float32 | bfloat16 | float16. auto = best for the device."
    )
