"""What the benchmarks share: two ways to do the same in turn, and memory over cycles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

__all__ = ["in_turn", "over_cycles"]


def in_turn(plain: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Run both in turn, so that what disturbs one disturbs the other.

    Returns:
        Medians of CPU seconds of this process, and the medians over the rounds of ours / plain, in CPU time and by the
        clock. On a busy machine only the first of these two means something.
    """
    taken: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for turn in range(rounds + 1):
        for name, run in (("plain", plain), ("ours", ours))[:: 1 if turn % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first round warms both up
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    ratios = [(o[0] / p[0], o[1] / p[1]) for p, o in zip(taken["plain"], taken["ours"], strict=True)]
    return {
        "plain_cpu_s": round(statistics.median(cpu for cpu, _ in taken["plain"]), 4),
        "ours_cpu_s": round(statistics.median(cpu for cpu, _ in taken["ours"]), 4),
        "ratio_cpu": round(statistics.median(cpu for cpu, _ in ratios), 4),
        "ratio_clock": round(statistics.median(wall for _, wall in ratios), 4),
        "ratios_cpu": sorted(round(cpu, 3) for cpu, _ in ratios),
    }


def over_cycles(cycle: Callable[[], Any], cycles: int) -> dict[str, Any]:
    """Resident MB after each cycle, and the slope after the tenth."""
    import psutil

    held = []
    for _ in range(cycles):
        cycle()
        held.append(psutil.Process().memory_info().rss / 1e6)
    late = held[10:]
    slope = statistics.linear_regression(range(len(late)), late).slope if len(late) > 2 else float("nan")
    return {"slope_mb_per_cycle_after_10": round(slope, 3), "rss_mb": [round(mb, 1) for mb in held]}
