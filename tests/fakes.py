"""An engine without a library, for tests of everything that stands above engines."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.engines import EngineRow
from lollms_local.errors import GenerationError, LoadError
from lollms_local.footprint import Footprint
from lollms_local.modalities.base import Control, LoadOptions, Modality

#: the row to put into `ENGINES` under any name
ROW = EngineRow("tests.fakes", "FakeTranscriber", "stt", "stt", ("json",), ())
MIB = 1 << 20


class FakeTranscriber:
    """Reads `answer.txt` of its folder; counts how often it was loaded and closed."""

    modality: ClassVar[Modality] = "stt"
    load_options: ClassVar[type[LoadOptions]] = LoadOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = False
    shares_rng: ClassVar[bool] = False
    loads: ClassVar[int] = 0
    closes: ClassVar[int] = 0
    #: set by a test to hold a generation open
    gate: ClassVar[threading.Event | None] = None
    entered: ClassVar[threading.Event] = threading.Event()

    def __init__(self, answer: str) -> None:
        self.answer = answer

    @classmethod
    def reset(cls) -> None:
        cls.loads, cls.closes, cls.gate, cls.entered = 0, 0, None, threading.Event()

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        return Footprint(weights_bytes=MIB, reason="fake")

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> FakeTranscriber:
        answer = (path / "answer.txt").read_text(encoding="utf-8")
        if answer == "damaged":
            raise LoadError("The file answer.txt is damaged.", hint="Download it again.")
        cls.loads += 1
        return cls(answer)

    def say(self, control: Control) -> str:
        self.entered.set()
        for step in range(4):
            control.report(step, 4, "step", "say")
            if self.gate is not None:
                assert self.gate.wait(30)
        if self.answer == "fails":
            raise GenerationError("The fake failed.")
        return self.answer

    def close(self) -> None:
        type(self).closes += 1
