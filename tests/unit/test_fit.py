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
        (17.5, "device", False, False),
        (15, "device", True, False),
        (13, "device", True, True),
        (12.25, "device", True, True),
        (10, "model_offload", False, False),
        (8.5, "model_offload", False, False),
        (6, "group_offload", True, False),
        (3.3, "group_offload", True, True),
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
    assert "17.50 GiB" in plan(18).reason and "fastest" in plan(18).reason
    assert "more memory or a smaller size" in plan(10).reason


def test_what_waits_in_ram_is_counted_there() -> None:
    assert plan(15).host_bytes == 0
    assert plan(10).host_bytes == sum(PARTS.values())
    assert plan(0.5).device_bytes == 0 and plan(0.5).host_bytes > sum(PARTS.values())


def test_each_step_can_be_forced() -> None:
    assert plan(100, placement="group_offload").placement == "group_offload"
    assert plan(100, vae_tiling="on").vae_tiling
    assert not plan(12.5, vae_tiling="off").vae_tiling
    forced = plan(5, placement="device")
    assert not forced.fits and "needs 12.25 GiB" in forced.reason


def test_a_card_s_peak_is_met_for_each_placement() -> None:
    """SDXL in bfloat16, 1024x1024, as seen on an H100 (benchmarks/RESULTS.md), in MB with what torch rounds up."""
    parts = {"unet": 5443, "text_encoder_2": 1470, "text_encoder": 262, "vae": 178}
    work = Workspace(503, 2416, 2416, 617)
    for placement, seen in (("device", 12180), ("model_offload", 5962), ("group_offload", 5234)):
        found = plan_fit(parts, work, room_bytes=80_000, on_gpu=True, placement=placement)  # type: ignore[arg-type]
        assert found.device_bytes == pytest.approx(seen, rel=0.07), placement


def test_on_a_cpu_there_is_nothing_to_offload_to() -> None:
    assert plan(15, on_gpu=False).placement == "device"
    assert plan(11.5, on_gpu=False).vae_tiling
    small = plan(4, on_gpu=False)
    assert (small.placement, small.fits) == ("device", False)
    with pytest.raises(UnsupportedRequest, match="needs a GPU"):
        plan(15, on_gpu=False, placement="model_offload")
