"""Weights of torch networks that wait in RAM while others need the card, and come back without reading the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..devices import Device
from ..errors import LoadError
from ._torch import foreign_errors, tensor_bytes

__all__ = ["ParksNetworks"]


class ParksNetworks:
    """Makes an engine `engines.Parkable`: it says which of its networks are on which device."""

    def _on_device(self) -> tuple[Device, Sequence[Any]]:
        """The device, and the networks that have all their tensors there; none while the engine moves them itself."""
        raise NotImplementedError

    @property
    def parked_bytes(self) -> int:
        """RAM that the networks would take; 0 where they are in RAM already (a CPU, an Apple GPU, offloaded parts)."""
        device, networks = self._on_device()
        return tensor_bytes(*networks) if device.pool != "ram" else 0

    def park(self) -> None:
        """Move the networks to RAM: to pageable memory, as pinned pages would be lost to all other programs."""
        _, networks = self._on_device()
        for network in networks:
            network.to("cpu")

    def unpark(self) -> None:
        """Move them back; after a failure half way it can be tried again.

        Raises:
            InsufficientMemory: the card has no room. LoadError: the library failed.
        """
        device, networks = self._on_device()
        with foreign_errors("The return from RAM", LoadError):
            for network in networks:
                network.to(device.torch_name)
