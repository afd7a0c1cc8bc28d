"""Devices: the best one by itself, the named one or a clear refusal, formats that pay, memory without a context."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lollms_local import devices
from lollms_local.devices import (
    Device,
    Memory,
    available_devices,
    choose_dtype,
    cpu_threads,
    pool_memory,
    select_device,
)
from lollms_local.errors import DeviceNotAvailable

CPU, CUDA, MPS = Device("cpu"), Device("cuda", 1), Device("mps")


def test_the_cpu_is_always_there_and_always_last() -> None:
    assert available_devices()[-1].kind == "cpu"
    assert select_device("cpu").torch_name == "cpu"


def test_auto_takes_the_best_and_says_why() -> None:
    chosen = select_device("auto")
    assert chosen.kind == available_devices()[0].kind and chosen.reason
    assert select_device("").torch_name == select_device(" AUTO ").torch_name == chosen.torch_name


@pytest.mark.parametrize("request_", ["cuda:99", "tpu", "cpu:3"])
def test_a_device_asked_for_by_name_is_never_replaced(request_: str) -> None:
    with pytest.raises(DeviceNotAvailable) as caught:
        select_device(request_)
    assert "cpu" in caught.value.message and "doctor" in caught.value.hint


def test_cpu_and_mps_share_ram_and_each_card_is_its_own_pool() -> None:
    assert (CPU.pool, MPS.pool, CUDA.pool) == ("ram", "ram", "cuda:1")
    assert (CPU.torch_name, MPS.torch_name, CUDA.torch_name) == ("cpu", "mps", "cuda:1")


@pytest.mark.parametrize("workload", ["diffusion", "autoregressive", "native"])
def test_float16_is_never_used_on_a_cpu(workload: devices.Workload) -> None:
    for request_ in ("auto", "float16"):
        dtype, reason = choose_dtype(CPU, workload, request_)
        assert dtype != "float16" and reason


def test_token_by_token_models_stay_in_float32_on_a_cpu() -> None:
    assert choose_dtype(CPU, "autoregressive")[0] == "float32"


def test_a_named_format_is_taken_where_it_can_be() -> None:
    assert choose_dtype(CPU, "diffusion", "float32") == ("float32", "asked for")
    assert choose_dtype(CUDA, "native", "bfloat16") == ("bfloat16", "asked for")


@pytest.mark.parametrize(("has_bf16", "told"), [(True, False), (False, True)])
def test_who_asks_for_a_format_that_the_processor_lacks_is_told(
    has_bf16: bool, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has_bf16)
    dtype, reason = choose_dtype(CPU, "diffusion", "bfloat16")
    assert dtype == "bfloat16" and ("slower" in reason) is told


def test_ram_is_what_the_control_group_gives_when_it_is_less(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
    assert devices._cgroup_memory(tmp_path) == (1_000_000_000, 300_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert devices._cgroup_memory(tmp_path) == (None, 0)


def test_free_memory_is_not_more_than_all_and_an_unknown_pool_is_refused() -> None:
    memory = pool_memory("ram")
    assert isinstance(memory, Memory) and 0 < memory.free_bytes <= memory.total_bytes
    with pytest.raises(DeviceNotAvailable):
        pool_memory("cuda:99")


def test_an_amd_card_is_found_by_the_memory_it_reports(tmp_path: Path) -> None:
    card = tmp_path / "card0" / "device"
    card.mkdir(parents=True)
    (tmp_path / "card1" / "device").mkdir(parents=True)
    (card / "mem_info_vram_total").write_text("8000000000")
    assert devices._amd_cards(tmp_path) == [card]


def test_threads_are_at_least_one_and_within_the_machine() -> None:
    import os

    assert 1 <= cpu_threads() <= (os.cpu_count() or 1)


def test_looking_at_devices_imports_no_torch() -> None:
    code = (
        "import sys; from lollms_local.devices import available_devices, pool_memory, select_device\n"
        "[pool_memory(d.pool) for d in available_devices()]; select_device()\n"
        "print([m for m in ('torch', 'numpy', 'llama_cpp', 'ctranslate2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
