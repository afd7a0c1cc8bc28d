"""What would make a model run better here, or at all: the second half of `lollms-local plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..devices import Device, Memory
from ..footprint import Footprint
from ..modalities.base import Modality
from .output import size

__all__ = ["Situation", "advice"]

#: cards, by the set of the catalogue that suits them
_SETS = ((22 << 30, "gpu-24gb"), (11 << 30, "gpu-12gb"), (7 << 30, "gpu-8gb"), (0, "cpu"))


@dataclass(frozen=True)
class Situation:
    """Where a model is to run.

    Attributes:
        device: the one that was chosen.
        best: the machine's best one.
        footprint: what the model takes.
        room: bytes that it can have, by pool.
        memory: what each pool has, and what is free of it.
        budgets: the user's own limits, by pool.
    """

    modality: Modality
    device: Device
    best: Device
    footprint: Footprint
    room: Mapping[str, int]
    memory: Mapping[str, Memory]
    budgets: Mapping[str, int]

    @property
    def short(self) -> dict[str, int]:
        """Bytes that are missing, by pool."""
        claims = self.footprint.claims(self.device.pool)
        return {pool: need - self.room[pool] for pool, need in claims.items() if need > self.room[pool]}


def advice(now: Situation) -> list[str]:
    """One sentence for each thing that helps, the cheapest first; empty if there is nothing to better."""
    said: list[str] = []
    for pool, lacking in now.short.items():
        said += _more_room(now, pool, lacking)
    if now.short:
        if now.modality == "llm":
            said.append("Take a smaller quantisation, or a smaller context: --ctx-size of chat and run.")
        said.append(
            f"Models for this machine: lollms-local models download --set {_set(now)} --modality {now.modality}"
        )
    elif now.footprint.host_bytes and now.device.pool != "ram":
        total = size(now.footprint.host_bytes)
        said.append(f"It would be faster with all of it on the card, which takes {total} more there.")
        said += _more_room(now, now.device.pool, now.footprint.host_bytes)
    if now.device.kind == "cpu" and now.best.kind != "cpu":
        said.append(f"There is {now.best.name or now.best.torch_name}: --device {now.best.torch_name} is faster.")
    return said


def _more_room(now: Situation, pool: str, lacking: int) -> list[str]:
    """Where the lacking bytes of a pool could come from."""
    said = []
    budget, memory = now.budgets.get(pool, 0), now.memory[pool]
    if budget and budget < memory.total_bytes:
        name = "RAM" if pool == "ram" else "VRAM"
        said.append(f"LOLLMS_LOCAL_{name}_BUDGET_GB allows {size(budget)} of {size(memory.total_bytes)}; raise it.")
    taken = memory.total_bytes - memory.free_bytes
    if taken >= max(lacking, memory.total_bytes // 8):
        said.append(f"Other programs hold {size(taken)} of {pool}: close some.")
    return said


def _set(now: Situation) -> str:
    card = now.memory[now.best.pool].total_bytes if now.best.pool in now.memory and now.best.kind == "cuda" else 0
    return next(name for least, name in _SETS if card >= least)
