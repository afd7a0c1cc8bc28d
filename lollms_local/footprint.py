"""Bytes that a model will need, read from the headers of its files before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Footprint"]


@dataclass(frozen=True)
class Footprint:
    """What a model will take, and where its parts will go.

    Attributes:
        weights_bytes: held in the device's pool as long as the model is loaded.
        workspace_bytes: the most that generation adds in the same pool (KV cache, activations).
        host_bytes: held in RAM besides, when the device's pool is not RAM (offloaded layers, parked parts).
        placement: the engine's own plan, handed back to its `load`; e.g. the number of layers on the GPU.
        reason: why this plan, and what would change it, in words.
    """

    weights_bytes: int
    workspace_bytes: int = 0
    host_bytes: int = 0
    placement: Any = None
    reason: str = ""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.workspace_bytes + self.host_bytes

    def claims(self, pool: str) -> dict[str, int]:
        """Bytes per memory pool, for the manager."""
        claims = {pool: self.weights_bytes + self.workspace_bytes}
        if self.host_bytes:
            claims["ram"] = claims.get("ram", 0) + self.host_bytes
        return claims
