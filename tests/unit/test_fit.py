"""The fit plan: the fastest placement that fits, and why."""

from __future__ import annotations

from typing import Any

import pytest

from lollms_local.errors import UnsupportedRequest
from lollms_local.fit import FitPlan, Workspace, plan_fit

GIB = 1 << 30
PARTS = {"text_encoder": 2 * GIB, "transformer": 8 * GIB, "vae": GIB}
WORK = Workspace(denoise_bytes=GIB // 2, decode_bytes=4 * GIB, decode_sliced_bytes=2 * GIB, decode_tiled_bytes=GIB // 2)


def plan(room_gib: float, on_gpu: bool = True, **said: Any) -> FitPlan:
    return plan_fit(PARTS, WORK, room_bytes=int(room_gib * GIB), on_gpu=on_gpu, **said)


@pytest.mark.parametrize(
    ("room_gib", "placement", "slicing", "tiling"),
    [
        (15, "device", False, False),
        (13, "device", True, False),
        (11.5, "device", True, True),
        (12.0, "device", True, True),
        (10, "model_offload", True, False),
        (8.5, "model_offload", True, True),
        (6, "group_offload", False, False),
        (2.6, "group_offload", True, True),
        (0.5, "cpu", False, False),
    ],
)
def test_the_cheapest_loss_of_speed_comes_first(room_gib: float, placement: str, slicing: bool, tiling: bool) -> None:
    found = plan(room_gib)
    assert (found.placement, found.vae_slicing, found.vae_tiling) == (placement, slicing, tiling)
    assert found.fits and found.device_bytes <= room_gib * GIB


def test_more_room_is_never_slower() -> None:
    order = ["cpu", "group_offload", "model_offload", "device"]
    ranks = [order.index(plan(quarter / 4).placement) for quarter in range(0, 80)]
    assert ranks == sorted(ranks) and set(ranks) == {0, 1, 2, 3}


def test_a_plan_says_why_and_what_would_change_it() -> None:
    assert "15.00 GiB" in plan(15).reason and "fastest" in plan(15).reason
    assert "more memory or a smaller size" in plan(10).reason


def test_what_waits_in_ram_is_counted_there() -> None:
    assert plan(15).host_bytes == 0
    assert plan(10).host_bytes == sum(PARTS.values())
    assert plan(0.5).device_bytes == 0 and plan(0.5).host_bytes > sum(PARTS.values())


def test_each_step_can_be_forced() -> None:
    assert plan(100, placement="group_offload").placement == "group_offload"
    assert plan(100, vae_tiling="on").vae_tiling
    assert not plan(11.5, vae_tiling="off").vae_tiling
    forced = plan(5, placement="device")
    assert not forced.fits and "needs 11.50 GiB" in forced.reason


def test_on_a_cpu_there_is_nothing_to_offload_to() -> None:
    assert plan(15, on_gpu=False).placement == "device"
    assert plan(11.5, on_gpu=False).vae_tiling
    small = plan(4, on_gpu=False)
    assert (small.placement, small.fits) == ("device", False)
    with pytest.raises(UnsupportedRequest, match="needs a GPU"):
        plan(15, on_gpu=False, placement="model_offload")
