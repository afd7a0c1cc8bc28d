"""Bytes: what a pool can still give, and giving memory back for real."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .devices import GIB, Memory, pool_memory

__all__ = [
    "Charge",
    "Pools",
    "default_headroom",
    "empty_cache",
    "give_back",
    "heap_for_loading",
    "held_bytes",
    "own_bytes",
    "readable",
]

MIB = 1 << 20

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc


def readable(count: int) -> str:
    """Bytes for people: "1.3 GiB", "350 MiB", "12 KiB"."""
    for unit, size in (("GiB", GIB), ("MiB", MIB)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}" if abs(count) < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1024:.0f} KiB"


# --- giving back --------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """The C library if it is glibc; mallopt and malloc_trim mean nothing elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "malloc_trim") else None


def give_back() -> None:
    """Collect what closed models left, empty the allocators' caches and return the heap to the system."""
    gc.collect()
    _empty_torch_caches(sys.modules.get("torch"))
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _empty_torch_caches(torch: Any) -> None:
    """Only where torch has been in use: touching CUDA here would create a context of some 400 MB."""
    if _cuda_in_use(torch):
        torch.cuda.empty_cache()
    elif sys.platform == "darwin" and hasattr(torch, "mps") and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def empty_cache(pool: str) -> int:
    """Give back what allocators of this process keep of a pool without use; how many bytes came back.

    Of a card: torch's cache, if there is any (to empty it waits for what the card computes now). RAM: the heap's.
    """
    if pool == "ram":
        libc = _glibc()
        if libc is None:
            return 0
        before = own_bytes(pool)
        libc.malloc_trim(0)
        return max(0, before - own_bytes(pool))
    torch: Any = sys.modules.get("torch")
    if not _cuda_in_use(torch):
        return 0
    index = int(pool.partition(":")[2] or 0)
    before = own_bytes(pool)
    if before <= torch.cuda.memory_allocated(index):
        return 0
    torch.cuda.empty_cache()
    return max(0, before - own_bytes(pool))


def _cuda_in_use(torch: Any) -> bool:
    # hasattr: another thread may be half-way through importing torch
    return hasattr(torch, "cuda") and hasattr(torch.cuda, "is_initialized") and bool(torch.cuda.is_initialized())


@contextmanager
def heap_for_loading() -> Iterator[None]:
    """While it lasts, every block above 1 MB gets pages of its own, which return to the system when it is freed.

    Without it 100 to 500 MB of a freed model stay in the heap (measured: torch in bfloat16 rose from 664 to 857 MB over
    20 cycles, with it 433 to 435). Left on for good it would cost 37 % of CPU time in page faults, so it ends with the
    load.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _set_threshold(libc, +1)
    try:
        yield
    finally:
        _set_threshold(libc, -1)


_in_loads = 0
_in_loads_lock = threading.Lock()


def _set_threshold(libc: ctypes.CDLL, step: int) -> None:
    """The threshold is the process's own: it goes back when the last of several has ended."""
    global _in_loads
    with _in_loads_lock:
        _in_loads += step
        libc.mallopt(_M_MMAP_THRESHOLD, MIB if _in_loads else 32 * MIB)


# --- what there is ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _process() -> Any:
    import psutil

    return psutil.Process()


def own_bytes(pool: str) -> int:
    """Bytes of a pool that this process has really taken, so far as it can tell without creating a CUDA context.

    RAM: anonymous memory. Mapped weight files are left out: the system counts their pages as free, as it may drop them.
    CUDA: what torch's allocator has reserved; memory of other libraries is known from the measurement after each load.
    """
    if pool == "ram":
        info = _process().memory_info()
        return int(info.rss - getattr(info, "shared", 0))
    torch: Any = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved(int(pool.partition(":")[2] or 0))) if _cuda_in_use(torch) else 0


def held_bytes(pool: str) -> int:
    """Bytes of a pool that are taken now, to tell what a load or a job adds.

    RAM: all that this process has in it, mapped files included, as a model's weights may be. A card: what the driver
    has given to anyone, as it does not tell whose it is everywhere.
    """
    if pool == "ram":
        return int(_process().memory_info().rss)
    memory = pool_memory(pool)
    return memory.total_bytes - memory.free_bytes


def default_headroom(pool: str, total_bytes: int) -> int:
    """Bytes that are never given to models.

    A GPU needs them for the CUDA context and library workspaces, and because ggml ends the process when an allocation
    fails; RAM for the program itself and the rest of the system. A sixteenth, within limits.
    """
    least, most = (256 * MIB, 2 * GIB) if pool == "ram" else (512 * MIB, 3 * GIB // 2)
    return min(max(total_bytes // 16, least), most, total_bytes // 2)


@dataclass(frozen=True)
class Charge:
    """What one resident stands for in one pool: bytes it is charged for, and bytes seen to go when it was loaded."""

    charged: int
    measured: int = 0


@dataclass(frozen=True)
class Pools:
    """What each pool may still give.

    Args:
        memory: total and free bytes of a pool, now.
        budgets: most bytes for models, per pool; a pool without an entry has its total less the headroom.
        headroom: bytes to leave alone, from the pool's name and total.
        own: bytes this process really has of a pool; None = take it that all residents have all they are charged for.
    """

    memory: Callable[[str], Memory] = pool_memory
    budgets: Mapping[str, int] | None = None
    headroom: Callable[[str, int], int] = default_headroom
    own: Callable[[str], int] | None = None

    def budget(self, pool: str) -> int:
        """Most bytes that models may have, were no other program running."""
        total = self.memory(pool).total_bytes
        most = max(0, total - self.headroom(pool, total))
        return min(most, (self.budgets or {}).get(pool, most))

    def available(self, pool: str, charges: Iterable[Charge], *, strict: bool = True) -> int:
        """Bytes that one more model could take without an eviction; negative when the pool is overdrawn.

        Two limits hold at once. The ledger: all charges stay within the budget. And reality: other programs may have
        taken their part since. What residents have not taken yet of their charge (a workspace, a mapped file not read)
        is still owed to them; what they have taken is gone from the free bytes already and is not subtracted again.

        Args:
            strict: False lets the second limit eat half the headroom: right after an eviction, when the system may be
                slow to see the memory as free.
        """
        rows = list(charges)
        now = self.memory(pool)
        reserve = self.headroom(pool, now.total_bytes)
        most = max(0, now.total_bytes - reserve)
        charged = sum(row.charged for row in rows)
        owed = 0
        if self.own is not None:
            owed = max(0, charged - max(self.own(pool), sum(row.measured for row in rows)))
        real = now.free_bytes - (reserve if strict else reserve // 2) - owed
        return min(min(most, (self.budgets or {}).get(pool, most)) - charged, real)
