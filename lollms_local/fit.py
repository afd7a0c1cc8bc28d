"""The fit plan: how to place a pipeline so that it fits, cheapest loss of speed first. Pure: bytes in, a plan out.

1. device         all parts on the device; the VAE decodes in one go (fastest)
2. + VAE slicing  one picture of a batch at a time through the VAE (no loss for one picture)
3. + VAE tiling   the VAE decodes in overlapping tiles (a few per cent slower)
4. model_offload  one network at a time on the device, the others wait in RAM (a copy per network and picture)
5. group_offload  one block at a time on the device (a copy per block and step: several times slower)
6. cpu            computed on the CPU (tens of times slower)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .errors import UnsupportedRequest

__all__ = ["FitPlan", "Placement", "Workspace", "plan_fit"]

Placement = Literal["device", "model_offload", "group_offload", "cpu"]
Switch = Literal["auto", "on", "off"]

#: what the decoder's activations take of a GPU, over what they take of RAM: convolutions get scratch memory there, and
#: torch keeps freed blocks. With it every placement's peak on an H100 is met within 7 % (benchmarks/RESULTS.md)
GPU_DECODE = 1.5


@dataclass(frozen=True)
class Workspace:
    """Bytes that a job adds while it runs, one number for each way to run its parts.

    Attributes:
        denoise_bytes: activations of one pass of the denoiser, guidance included.
        decode_bytes: activations of the VAE that decodes a whole batch at once.
        decode_sliced_bytes: the same, one picture at a time.
        decode_tiled_bytes: the same in tiles.
    """

    denoise_bytes: int
    decode_bytes: int
    decode_sliced_bytes: int
    decode_tiled_bytes: int

    def decode(self, slicing: bool, tiling: bool) -> int:
        """Activations of the VAE that works like this."""
        return self.decode_tiled_bytes if tiling else self.decode_sliced_bytes if slicing else self.decode_bytes

    def peak(self, slicing: bool, tiling: bool, *, on_gpu: bool) -> int:
        """What both phases take. They never run at the same time, but on a GPU torch keeps the first one's blocks."""
        decode = self.decode(slicing, tiling)
        return self.denoise_bytes + int(GPU_DECODE * decode) if on_gpu else max(self.denoise_bytes, decode)

    def peak_in_turn(self, largest_bytes: int, vae_bytes: int, slicing: bool, tiling: bool) -> int:
        """What weights and activations take of a GPU together if each network is there only while it works."""
        decode = vae_bytes + int(GPU_DECODE * self.decode(slicing, tiling))
        return max(largest_bytes + self.denoise_bytes, decode)


@dataclass(frozen=True)
class FitPlan:
    """A placement and what it takes.

    Attributes:
        placement: where the parts are; see the module's list.
        vae_slicing, vae_tiling: how the VAE works.
        weights_bytes: weights in the device's memory at one time.
        workspace_bytes: activations there.
        host_bytes: held in RAM besides.
        fits: False if even this plan, the smallest allowed, is larger than the room.
        reason: why this one, and what would change it.
    """

    placement: Placement
    vae_slicing: bool
    vae_tiling: bool
    weights_bytes: int
    workspace_bytes: int
    host_bytes: int
    fits: bool
    reason: str

    @property
    def device_bytes(self) -> int:
        """All that it takes of the device's memory."""
        return self.weights_bytes + self.workspace_bytes


def plan_fit(
    part_bytes: Mapping[str, int],
    workspace: Workspace,
    *,
    room_bytes: int,
    on_gpu: bool,
    placement: Literal["auto", "device", "model_offload", "group_offload", "cpu"] = "auto",
    vae_slicing: Switch = "auto",
    vae_tiling: Switch = "auto",
    largest_block_bytes: int = 0,
) -> FitPlan:
    """The fastest plan that fits.

    Args:
        part_bytes: bytes of each part as it will be loaded, by name; the decoder is "vae".
        workspace: what a job adds.
        room_bytes: most that the device can give.
        on_gpu: False for a CPU: then there is nothing to offload to.
        placement, vae_slicing, vae_tiling: "auto", or what the user forces.
        largest_block_bytes: largest block of the denoiser, for the group offload; 0 = an eighth of the largest part.

    Returns:
        The plan; if nothing fits, the smallest one with `fits` False, so that the refusal can name its size.

    Raises:
        UnsupportedRequest: an offload was forced where there is no GPU.
    """
    if not on_gpu and placement in ("model_offload", "group_offload"):
        raise UnsupportedRequest(
            f"placement={placement} needs a GPU to offload from; this model runs on the CPU.",
            hint='Use placement="auto".',
        )
    plans = [
        _plan(where, slicing, tiling, part_bytes, workspace, largest_block_bytes, on_gpu)
        for where in _placements(placement, on_gpu)
        for slicing, tiling in _vae_ways(vae_slicing, vae_tiling)
    ]
    fitting = [plan for plan in plans if plan.device_bytes <= room_bytes]
    chosen = fitting[0] if fitting else min(plans, key=lambda plan: plan.device_bytes)
    reason = _reason(chosen, plans[0], room_bytes, forced=placement != "auto", fits=bool(fitting))
    return FitPlan(
        chosen.placement, chosen.vae_slicing, chosen.vae_tiling, chosen.weights_bytes, chosen.workspace_bytes,
        chosen.host_bytes, bool(fitting), reason,
    )  # fmt: skip


def _placements(placement: str, on_gpu: bool) -> list[Placement]:
    if placement != "auto":
        return [placement]  # type: ignore[list-item]
    return ["device", "model_offload", "group_offload", "cpu"] if on_gpu else ["device"]


def _vae_ways(slicing: Switch, tiling: Switch) -> list[tuple[bool, bool]]:
    """(slicing, tiling), fastest first. Tiles bring slices with them: one tile of one picture at a time."""
    slices = {"auto": (False, True), "on": (True,), "off": (False,)}[slicing]
    tiles = {"auto": (False, True), "on": (True,), "off": (False,)}[tiling]
    ways = [(s, t) for t in tiles for s in slices]
    return [way for way in ways if way != (False, True) or slicing != "auto"] or ways


def _plan(
    where: Placement,
    slicing: bool,
    tiling: bool,
    part_bytes: Mapping[str, int],
    workspace: Workspace,
    largest_block_bytes: int,
    on_gpu: bool,
) -> FitPlan:
    total, largest = sum(part_bytes.values()), max(part_bytes.values(), default=0)
    work = workspace.peak(slicing, tiling, on_gpu=on_gpu and where != "cpu")
    if where == "model_offload":
        work = workspace.peak_in_turn(largest, part_bytes.get("vae", 0), slicing, tiling) - largest
    block = largest_block_bytes or largest // 8
    device, host = {
        "device": (total, 0),
        "model_offload": (largest, total),
        "group_offload": (2 * block, total),  # one block computes while the next one arrives
        "cpu": (0, total + work) if on_gpu else (total, 0),
    }[where]
    device_work = 0 if where == "cpu" and on_gpu else work
    return FitPlan(where, slicing, tiling, device, device_work, host, True, "")


def _reason(chosen: FitPlan, fastest: FitPlan, room_bytes: int, *, forced: bool, fits: bool) -> str:
    need, room = _gib(fastest.device_bytes), _gib(room_bytes)
    how = chosen.placement + (
        ", VAE in tiles" if chosen.vae_tiling else ", VAE in slices" if chosen.vae_slicing else ""
    )
    if not fits:
        return f"Even {how} needs {_gib(chosen.device_bytes)} and there is room for {room}."
    if forced:
        return f"{how}: asked for; needs {_gib(chosen.device_bytes)} of {room}."
    if chosen.placement == fastest.placement and chosen.vae_tiling == fastest.vae_tiling:
        return f"{how}: fastest plan, needs {_gib(chosen.device_bytes)} of {room}."
    return (
        f"{how}: all at once would need {need} and there is room for {room}; more memory or a smaller size changes it."
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"
