"""Which device to run on, in which number format, and how much memory is there.

Nothing here imports torch or creates a CUDA context: NVIDIA cards are read through the driver's NVML library, AMD cards
through sysfs, RAM through the cgroup where there is one. A context alone costs 300 to 500 MB of a card.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import DeviceNotAvailable

__all__ = ["Device", "Memory", "available_devices", "choose_dtype", "cpu_threads", "pool_memory", "select_device"]

log = logging.getLogger(__name__)

Kind = Literal["cuda", "mps", "cpu"]
DType = Literal["float32", "bfloat16", "float16"]
#: what the weights are for: it decides which formats pay on a CPU
Workload = Literal["diffusion", "autoregressive", "native"]

GIB = 1 << 30


@dataclass(frozen=True)
class Memory:
    """Memory of one pool, in bytes."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        kind: "cuda" (NVIDIA, or AMD through ROCm), "mps" or "cpu".
        index: which card, 0 for the others.
        name: what the machine calls it.
        reason: why it was chosen, for the log and for `lollms-local doctor`.
    """

    kind: Kind
    index: int = 0
    name: str = ""
    reason: str = ""

    @property
    def pool(self) -> str:
        """The memory it draws from: "cuda:N", or "ram" for CPU and MPS, which share it."""
        return f"cuda:{self.index}" if self.kind == "cuda" else "ram"

    @property
    def torch_name(self) -> str:
        """The name torch uses."""
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


# --- finding devices --------------------------------------------------------------------------------------------


class _NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


@functools.lru_cache(maxsize=1)
def _nvml() -> ctypes.CDLL | None:
    """The NVIDIA driver's management library, initialised; None without a driver."""
    name = "nvml.dll" if platform.system() == "Windows" else "libnvidia-ml.so.1"
    try:
        lib = ctypes.CDLL(name)
    except OSError:
        return None
    return lib if lib.nvmlInit_v2() == 0 else None


def _nvml_handle(lib: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    if lib.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        raise DeviceNotAvailable(f"The NVIDIA driver has no card with number {index}.")
    return handle


def _visible_nvidia() -> list[int]:
    """Driver numbers of the cards this process may use, in CUDA's order (CUDA_VISIBLE_DEVICES honoured)."""
    lib = _nvml()
    if lib is None:
        return []
    count = ctypes.c_uint()
    if lib.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    every = list(range(count.value))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return every
    chosen = []
    for part in visible.split(","):
        if not part.strip().isdigit() or int(part) not in every:
            break  # CUDA stops at the first entry it does not know
        chosen.append(int(part))
    return chosen


def _nvidia_name(driver_index: int) -> str:
    lib = _nvml()
    if lib is None:
        return ""
    buffer = ctypes.create_string_buffer(96)
    handle = _nvml_handle(lib, driver_index)
    return buffer.value.decode(errors="replace") if lib.nvmlDeviceGetName(handle, buffer, 96) == 0 else "NVIDIA GPU"


def _amd_cards(root: Path = Path("/sys/class/drm")) -> list[Path]:
    """Folders of AMD cards that report their memory."""
    return sorted(p.parent for p in root.glob("card[0-9]*/device/mem_info_vram_total")) if root.is_dir() else []


def available_devices() -> list[Device]:
    """Every device of this machine, best first; the CPU is always the last."""
    found = [Device("cuda", i, _nvidia_name(n)) for i, n in enumerate(_visible_nvidia())]
    if not found:
        found = [Device("cuda", i, f"AMD GPU ({card.parent.name})") for i, card in enumerate(_amd_cards())]
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append(Device("mps", 0, "Apple GPU"))
    return [*found, Device("cpu", 0, platform.processor() or platform.machine())]


def select_device(request: str = "auto") -> Device:
    """The device for a request.

    Args:
        request: "auto", "cuda", "cuda:N", "mps" or "cpu".

    Raises:
        DeviceNotAvailable: it was asked for by name and is not there.
    """
    found = available_devices()
    wanted = request.strip().lower() or "auto"
    if wanted == "auto":
        best = found[0]
        why = "the best device found" if best.kind != "cpu" else "no GPU was found"
        return Device(best.kind, best.index, best.name, why)
    kind, _, number = wanted.partition(":")
    for device in found:
        if device.kind == kind and (not number or str(device.index) == number):
            return Device(device.kind, device.index, device.name, "asked for")
    names = ", ".join(d.torch_name for d in found)
    raise DeviceNotAvailable(
        f"The device {request!r} is not on this machine; found: {names}.",
        hint='Use device="auto", or run "lollms-local doctor" to see why a GPU is not seen.',
    )


# --- number formats ---------------------------------------------------------------------------------------------


def choose_dtype(device: Device, workload: Workload, request: str = "auto") -> tuple[DType, str]:
    """The number format of torch weights, and the reason.

    On a CPU float16 is never used: convolutions run 265 times slower than in float32, a VAE decode 344 times (measured
    with torch 2.13 on Zen 4). bfloat16 halves a diffusion step there if the processor has it, but slows the
    one-token-at-a-time products of Bark and MusicGen. A processor without it takes 14 times as long as in float32 (a
    UNet step with AVX2 only).
    """
    if request != "auto" and not (request == "float16" and device.kind == "cpu"):
        slow = request == "bfloat16" and device.kind == "cpu" and not cpu_has_bf16()
        why = "asked for; many times slower than float32 on this CPU, which has no bfloat16" if slow else "asked for"
        return request, why  # type: ignore[return-value]
    if device.kind == "cuda":
        return (
            ("bfloat16", "diffusion keeps range in bfloat16")
            if workload == "diffusion" and cuda_has_bf16(device)
            else ("float16", "half the memory of float32 at full speed")
        )
    if device.kind == "mps":
        return "float16", "MPS runs half precision at full speed"
    asked = "float16 is far slower than float32 on a CPU; " if request == "float16" else ""
    if workload == "diffusion" and cpu_has_bf16():
        return "bfloat16", asked + "this CPU multiplies bfloat16 natively"
    return "float32", asked + "fastest on this CPU for this kind of model"


def cuda_has_bf16(device: Device) -> bool:
    """True for compute capability 8.0 and later (Ampere), where bfloat16 is native; AMD cards count as True."""
    lib = _nvml()
    if lib is None:
        return True
    major, minor = ctypes.c_int(), ctypes.c_int()
    handle = _nvml_handle(lib, _visible_nvidia()[device.index])
    lib.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return major.value >= 8


@functools.lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """True if the processor has bfloat16 dot products (x86 avx512_bf16 or amx_bf16, Arm bf16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


@functools.lru_cache(maxsize=1)
def cpu_is_intel() -> bool:
    """True on Intel's own x86 processors, where libraries with MKL use it."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "genuineintel" in platform.processor().lower()


# --- memory and cores -------------------------------------------------------------------------------------------


def pool_memory(pool: str) -> Memory:
    """Total and free bytes of a pool ("ram" or "cuda:N"), as the driver or the kernel sees them now.

    Raises:
        DeviceNotAvailable: there is no such pool.
    """
    if pool == "ram":
        return _ram()
    index = int(pool.partition(":")[2] or 0)
    lib, visible = _nvml(), _visible_nvidia()
    if lib is not None and index < len(visible):
        info = _NvmlMemory()
        lib.nvmlDeviceGetMemoryInfo(_nvml_handle(lib, visible[index]), ctypes.byref(info))
        return Memory(info.total, info.free)
    cards = _amd_cards()
    if index < len(cards):
        total = int((cards[index] / "mem_info_vram_total").read_text())
        return Memory(total, total - int((cards[index] / "mem_info_vram_used").read_text()))
    raise DeviceNotAvailable(f"There is no memory pool {pool!r} on this machine.")


def _ram() -> Memory:
    import psutil

    machine = psutil.virtual_memory()
    limit, used = _cgroup_memory()
    if limit is None or limit >= machine.total:
        return Memory(machine.total, machine.available)
    return Memory(limit, max(0, min(machine.available, limit - used)))


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """Limit (None = none) and use of this process's control group, version 2 or 1. Page cache counts as free."""
    for limit_name, use_name, stat_keys in (
        ("memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        try:
            text = (root / limit_name).read_text().strip()
            used = int((root / use_name).read_text())
            stat = (root / use_name).with_name("memory.stat").read_text()
        except (OSError, ValueError):
            continue
        cache = sum(int(line.split()[1]) for line in stat.splitlines() if line.split()[0] in stat_keys)
        if text == "max" or int(text) >= 1 << 60:
            return None, 0
        return int(text), max(0, used - cache)
    return None, 0


@functools.lru_cache(maxsize=1)
def cpu_threads() -> int:
    """Threads that a computation should use: physical cores this process may run on, within the cgroup's quota."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    logical, physical = os.cpu_count() or 1, psutil.cpu_count(logical=False) or os.cpu_count() or 1
    count = max(1, allowed * physical // logical) if logical > physical else min(allowed, physical)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 quota on this system
    return max(1, count)
