"""Whether and how a model will run here, said before its files are: from their sizes alone, so it is a rough word.

After the download `lollms-local plan` reads the headers and says it exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..catalog import ModelSpec
from ..devices import Device
from ..engines import engine_row
from .output import size

__all__ = ["Forecast", "forecast"]

#: weights, and something to work in
SHARE = 1.2
#: engines that can keep a part of a model outside the card
SPLITS = frozenset(["llama_cpp", "diffusers_image", "diffusers_video"])
#: engines that have no use for the card, or not for every kind of it
CPU_ONLY: dict[str, tuple[str, ...]] = {"piper": ("cuda", "mps"), "faster_whisper": ("mps",)}


@dataclass(frozen=True)
class Forecast:
    """How a model will run.

    Attributes:
        verdict: "fits", "in part" (the rest in RAM), "on the CPU" (the card is too small), "too large" or "unknown".
        device: where.
        memory_bytes: about what it will take; 0 = unknown.
        room_bytes: what it can have there.
        needs: packages that are missing.
        words: all of that for people.
    """

    verdict: Literal["fits", "in part", "on the CPU", "too large", "unknown"]
    device: str
    memory_bytes: int
    room_bytes: int
    needs: tuple[str, ...]
    words: str


def forecast(
    spec: ModelSpec, weights_bytes: int, device: Device, room: Callable[[str], int], missing: tuple[str, ...] = ()
) -> Forecast:
    """How `weights_bytes` of files will run.

    Args:
        device: the machine's best.
        room: bytes that a new model can have in a pool.
        missing: packages that the engine lacks.
    """
    if device.kind in CPU_ONLY.get(spec.engine, ()):
        device = Device("cpu")
    need, have, ram = int(SHARE * weights_bytes), room(device.pool), room("ram")
    about = f"about {size(need)} of {size(have)}"
    name = device.torch_name
    made: tuple[Literal["fits", "in part", "on the CPU", "too large", "unknown"], str]
    if not weights_bytes:
        made = ("unknown", f"{name}; its size is not known")
    elif need <= have:
        made = ("fits", f"{name}, {about}")
    elif device.pool != "ram" and spec.engine in SPLITS and need <= have + ram:
        made = ("in part", f"{name} in part, the rest in RAM and slower: {about}")
    elif device.pool != "ram" and need <= ram:
        made, name = ("on the CPU", f"the card is too small ({about}); on the CPU, slow"), "cpu"
    else:
        made = ("too large", f"TOO LARGE for this machine: {about}")
    extra = f"; first: pip install 'lollms-local[{engine_row(spec.engine).extra}]'" if missing else ""
    return Forecast(made[0], name, need, have, missing, made[1] + extra)
