"""`lollms-local doctor`: every check has a line, a verdict and, when bad, the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from .. import __version__, weights
from ..devices import Device, available_devices, cpu_threads, pool_memory
from ..engines import ENGINES, missing_packages
from ..errors import LocalModelError
from ..linking import host_folder, status
from ..offline import user_is_offline
from ..runtime import get_runtime
from .native import MEND, gpu_backends, llama_libraries, look_at_runtime, needs_cublas
from .output import AsJson, print_json, size

__all__ = ["Check", "diagnose", "register"]

_MARKS = {"ok": ("ok ", "green"), "note": ("-  ", "yellow"), "bad": ("BAD", "red")}


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        verdict: "ok", "note" (something optional is missing) or "bad" (something is broken).
        mend: the command or step that mends it.
    """

    name: str
    verdict: Literal["ok", "note", "bad"]
    detail: str
    mend: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check devices, engines, models, disk, and whether the host sees the bindings. Exit 1 if something is broken."""
    checks = list(diagnose())
    if as_json:
        print_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark, colour = _MARKS[check.verdict]
            typer.echo(f"{typer.style(mark, fg=colour)}  {check.name:<{width}}  {check.detail}")
            if check.mend:
                typer.echo(f"     {'':<{width}}  -> {check.mend}")
    if any(check.verdict == "bad" for check in checks):
        raise typer.Exit(1)


def diagnose() -> Iterator[Check]:
    """All checks, in the order of the layers: machine, libraries, models, host."""
    yield Check("lollms-local", "ok", f"{__version__}, Python {platform.python_version()}, {platform.system()}")
    yield from _devices()
    yield from _engines()
    yield from _native()
    yield from _models()
    yield _hub()
    yield from _host()


def _devices() -> Iterator[Check]:
    for device in available_devices():
        memory = pool_memory(device.pool)
        threads = f", {cpu_threads()} threads" if device.kind == "cpu" else ""
        detail = f"{device.name}: {size(memory.free_bytes)} of {size(memory.total_bytes)} free{threads}"
        yield Check(f"device {device.torch_name}", "ok", detail)
    gpu = next((d for d in available_devices() if d.kind == "cuda"), None)
    torch = _version("torch")
    if gpu is not None and torch is not None and torch.endswith("+cpu"):
        mend = "python3 scripts/bootstrap.py test --torch torch, or pip install torch for your GPU (docs/gpu.md)"
        yield Check("torch", "bad", f"{torch} is built for the CPU only, but there is a GPU.", mend)


def _engines() -> Iterator[Check]:
    for name, row in ENGINES.items():
        missing = missing_packages(name)
        if missing:
            mend = f"pip install 'lollms-local[{row.extra}]'"
            yield Check(f"engine {name}", "note", f"{row.modality}: needs {', '.join(missing)}", mend)
        else:
            main = row.packages[0]
            yield Check(f"engine {name}", "ok", f"{row.modality}: {main} {_version(main) or ''}".rstrip())


def _native() -> Iterator[Check]:
    card = next((d for d in available_devices() if d.kind == "cuda"), None)
    if card is not None and not card.name.startswith("AMD") and needs_cublas():
        mend = "pip install nvidia-cublas-cu12 nvidia-cudnn-cu12"
        yield Check("cuBLAS 12", "note", "not found: faster-whisper cannot use the card without it", mend)
    libraries = llama_libraries()
    if not libraries:
        return  # not Linux, or llama-cpp-python is not here, which its engine's line says
    if card is not None:
        yield _llama_on(card, gpu_backends(libraries))
    found = look_at_runtime(libraries)
    if found.kind == "static":
        with_torch = importlib.util.find_spec("torch") is not None
        what = "this ends the process as soon as torch is in it too (a segmentation fault)"
        yield Check("llama.cpp runtime", "bad" if with_torch else "note", f"{found.detail}: {what}", MEND)
    elif found.kind == "unknown":
        mend = "lollms-local chat  (if it ends without a word, reinstall llama-cpp-python; see docs/troubleshooting.md)"
        yield Check("llama.cpp runtime", "note", found.detail, mend)
    else:
        yield Check("llama.cpp runtime", "ok", found.detail)


def _llama_on(card: Device, backends: list[str]) -> Check:
    if backends:
        return Check("llama.cpp device", "ok", f"built for {', '.join(backends)}")
    flag = "-DGGML_HIP=on" if card.name.startswith("AMD") else "-DGGML_CUDA=on"
    mend = f'CMAKE_ARGS="{flag}" pip install --force-reinstall --no-cache-dir llama-cpp-python  (docs/gpu.md)'
    return Check("llama.cpp device", "bad", f"built for the CPU only, but there is {card.name or 'a GPU'}", mend)


def _version(module: str) -> str | None:
    """Version of the distribution that has this module; nothing is imported."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in (
        module,
        module.replace("_", "-"),
        {"llama_cpp": "llama-cpp-python", "piper": "piper-tts"}.get(module, ""),
    ):
        if name:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return None


def _models() -> Iterator[Check]:
    runtime = get_runtime()
    folder = runtime.models_dir
    yield _writable(folder)
    here = [spec for spec in runtime.catalog if weights.is_downloaded(spec, folder)]
    starter = [spec.id for spec in runtime.catalog.select(model_set="starter") if spec not in here]
    mend = "lollms-local models download --set starter --yes" if starter else ""
    detail = f"{len(here)} of {len(runtime.catalog)} in the catalogue are here" + (
        f"; the starter set lacks {', '.join(starter)}" if starter else ""
    )
    yield Check("models", "note" if starter else "ok", detail, mend)


def _writable(folder: Path) -> Check:
    above = folder
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    detail = f"{folder}, {size(free)} free"
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as exc:
        mend = "Set LOLLMS_LOCAL_MODELS_DIR to a folder that you can write."
        return Check("models folder", "bad", f"{detail}, cannot be written ({exc.strerror})", mend)
    if free < 1 << 30:
        return Check("models folder", "note", detail, "Make room, or set LOLLMS_LOCAL_MODELS_DIR to another disk.")
    return Check("models folder", "ok", detail)


def _hub() -> Check:
    pip = importlib.util.find_spec("pip") is not None
    if user_is_offline():
        return Check(
            "downloads", "note", "HF_HUB_OFFLINE is set: nothing is fetched from the hub", "unset HF_HUB_OFFLINE"
        )
    if not pip:
        mend = f"{sys.executable} -m ensurepip"
        return Check("downloads", "note", "pip is missing: models that come in packages cannot be fetched", mend)
    endpoint = os.environ.get("HF_ENDPOINT") or "the hub's own address"
    return Check("downloads", "ok", f"pip, and the hub by {endpoint}")


def _host() -> Iterator[Check]:
    if host_folder() is None:
        yield Check("host", "note", "lollms-client is not installed", "pip install lollms-client")
        return
    yield Check("host", "ok", f"lollms-client {_version('lollms_client') or 'of unknown version'}")
    try:
        states = status()
    except LocalModelError as exc:
        yield Check("bindings", "bad", exc.message, exc.hint)
        return
    for state in states:
        name = f"binding local_{state.modality}"
        if state.visible:
            yield Check(name, "ok", f"the host sees it ({state.state})")
        else:
            yield Check(name, "bad", f"the host does not see it ({state.state})", state.remedy)
