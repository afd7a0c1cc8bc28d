"""LoRAs on shared weights: jobs with the same set run together, a job with another set waits for them to finish."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import EngineNotInstalled, ModelBusy, UnsupportedRequest
from ..footprint import read_safetensors
from ..modalities.base import Control
from ..modalities.image import Lora
from ._torch import foreign_errors

__all__ = ["Adapters"]

log = logging.getLogger(__name__)

#: adapters kept in the model; beyond it, all are dropped before the next one is read
MAX_ADAPTERS = 8
_POLL_S = 0.2


class Adapters:
    """The LoRAs of one loaded pipeline. Which are active is a state of the shared weights, so it is guarded.

    Args:
        pipe: the loaded pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._turn = threading.Condition()
        self._active: tuple[tuple[str, float], ...] = ()
        self._users: dict[int, int] = {}
        self._loaded: dict[str, str] = {}

    def close(self) -> None:
        """Let go of the networks."""
        self._pipe = None

    @contextmanager
    def using(self, loras: Sequence[Lora], control: Control) -> Iterator[None]:
        """Run a job with exactly these LoRAs.

        Raises:
            UnsupportedRequest: the file does not fit this model. Cancelled: while waiting for its turn.
        """
        wanted = tuple(sorted((str(lora.path), lora.weight) for lora in loras if lora.weight != 0))
        me = threading.get_ident()
        with self._turn:
            self._wait(wanted, me, control)
            if wanted != self._active:
                self._switch(wanted, loras)
            self._users[me] = self._users.get(me, 0) + 1
        try:
            yield
        finally:
            with self._turn:
                self._users[me] -= 1
                if not self._users[me]:
                    del self._users[me]
                self._turn.notify_all()

    def _wait(self, wanted: tuple[tuple[str, float], ...], me: int, control: Control) -> None:
        while wanted != self._active and self._users:
            if me in self._users:
                raise ModelBusy(
                    "This thread is making a picture with other LoRAs on the same model.",
                    hint="Wait until that picture is finished.",
                )
            control.check()
            self._turn.wait(_POLL_S)

    def _switch(self, wanted: tuple[tuple[str, float], ...], loras: Sequence[Lora]) -> None:
        """Make exactly these active. If a file is refused, none is, and the error goes to the caller."""
        self._active = ()
        if self._loaded:
            self._pipe.disable_lora()
        if not wanted:
            return
        new = [lora for lora in loras if str(lora.path) not in self._loaded and lora.weight != 0]
        if self._loaded and len(self._loaded) + len(new) > MAX_ADAPTERS:
            self._pipe.unload_lora_weights()
            self._loaded.clear()
            new = [lora for lora in loras if lora.weight != 0]
        for lora in new:
            self._load(lora)
        with foreign_errors("The LoRA"):
            self._pipe.enable_lora()
            self._pipe.set_adapters([self._loaded[path] for path, _ in wanted], [weight for _, weight in wanted])
        self._active = wanted

    def _load(self, lora: Lora) -> None:
        if not hasattr(self._pipe, "load_lora_weights"):
            raise UnsupportedRequest(
                f"{type(self._pipe).__name__} takes no LoRAs.", hint="Leave the option loras empty."
            )
        _require_peft()
        read_safetensors(lora.path)
        name = "lora_" + hashlib.sha256(str(lora.path).encode()).hexdigest()[:12]
        try:
            with foreign_errors(
                f"The LoRA {lora.path.name}", UnsupportedRequest, "It was made for another kind of model."
            ):
                # without the low-memory path, which patches nn.Module for the whole process while it runs
                self._pipe.load_lora_weights(
                    str(lora.path.parent), weight_name=lora.path.name, adapter_name=name, low_cpu_mem_usage=False
                )
                # a file for another architecture is passed over without a word: nothing was added
                added = any(name in names for names in self._pipe.get_list_adapters().values())
            if not added:
                raise UnsupportedRequest(
                    f"The LoRA {lora.path.name} does not fit this model: nothing in it was used.",
                    hint="It was made for another architecture.",
                )
        except UnsupportedRequest:
            # a refused file leaves an empty entry behind; the others are read again when next asked for
            self._pipe.unload_lora_weights()
            self._loaded.clear()
            raise
        self._loaded[str(lora.path)] = name


def _require_peft() -> None:
    import importlib.util

    if importlib.util.find_spec("peft") is None:
        raise EngineNotInstalled("LoRAs need the library peft, which is not installed.", hint="Run: pip install peft")
