#!/usr/bin/env python3
"""From a fresh machine to a running project, with nothing but Python 3.10 or later.

    python3 scripts/bootstrap.py demo    set everything up, then try every modality that works here
    python3 scripts/bootstrap.py test    set everything up, then run the tests

Both make `.venv`, install torch and the project with all its extras, let the LoLLMS client see the bindings and
fetch the starter models. A second run finds all that in place and starts in seconds. Arguments after `--` go to the
demo or to pytest: `python3 scripts/bootstrap.py test -- tests/unit -x`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
TORCH = "torch==2.13.0"
# piper-tts is GPL-3.0-or-later; it is installed here for the starter voice, and no other extra pulls it in
EXTRAS = "all,piper,dev"


class SetupError(Exception):
    """A step failed; the text says what to do."""


def main() -> int:
    """Set up, run, and return the exit code of what was run."""
    options, extra = _arguments()
    if sys.version_info < OLDEST:
        print(
            f"Python {OLDEST[0]}.{OLDEST[1]} or later is needed; this is {platform.python_version()}.", file=sys.stderr
        )
        return 2
    started = time.monotonic()
    try:
        python = _environment(options.venv, options.torch)
        _run("link the bindings", [_script(python, "lollms-local"), "link"], quiet=True)
        if not options.no_models:
            fetch = [_script(python, "lollms-local"), "models", "download", "--set", "starter", "--yes"]
            _run("fetch the starter models", fetch)
    except SetupError as exc:
        print(f"\nThe set-up stopped: {exc}", file=sys.stderr)
        return 1
    print(f"Ready after {time.monotonic() - started:.0f} s: {options.venv}", flush=True)
    if options.job == "setup":
        return 0
    if options.job == "demo":
        command = [_script(python, "lollms-local"), "demo", *extra]
    else:
        command = [str(python), "-m", "pytest", *extra]
    return subprocess.call(command, cwd=ROOT, env=_clean_environment())


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("demo", "test", "setup"), help="what to do when everything is in place")
    parser.add_argument(
        "--torch",
        default=TORCH,
        help='pip arguments that choose the torch build, e.g. "torch --index-url https://download.pytorch.org/whl/cu128"',
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where the environment is made")
    parser.add_argument("--no-models", action="store_true", help="do not fetch the starter models")
    return parser.parse_args(given[:cut]), given[cut + 1 :]


def _environment(venv: Path, torch: str) -> Path:
    """Make or complete the environment; returns its Python."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = venv / ".lollms-local-stamp"
    wanted = _fingerprint(torch)
    if python.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if not python.exists():
        hint = "Install the venv module of your Python (Debian and Ubuntu: apt install python3-venv)."
        _run(f"make {venv}", [sys.executable, "-m", "venv", str(venv)], hint=hint)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    hint = 'Choose another build with --torch "<pip arguments>"; docs/gpu.md lists them.'
    _run("install torch", [*pip, *shlex.split(torch)], hint=hint)
    # by itself, so that its message stands alone; pip keeps the wheel it builds here for the next environment
    _run(
        "install llama-cpp-python (builds llama.cpp; some minutes the first time)",
        [*pip, "llama-cpp-python>=0.3.36"],
        hint="It needs a C and C++ compiler and CMake (Debian and Ubuntu: apt install build-essential cmake).",
    )
    _run("install the project", [*pip, "--editable", f".[{EXTRAS}]"], hint="Read pip's last lines above.")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _fingerprint(torch: str) -> str:
    """Changes when another installation would come out."""
    digest = hashlib.sha256()
    for part in (sys.version, platform.platform(), torch, EXTRAS, str(ROOT)):
        digest.update(part.encode() + b"\0")
    for file in ("pyproject.toml", "scripts/hatch_build.py"):
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def _script(python: Path, name: str) -> str:
    path = python.parent / (name + (".exe" if os.name == "nt" else ""))
    if not path.exists():
        raise SetupError(f"{path} is missing. Delete {python.parent.parent} and run this again.")
    return str(path)


def _clean_environment() -> dict[str, str]:
    """Without what would put another Python's packages before the environment's own."""
    dropped = {
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_USER",
        "PIP_REQUIRE_VIRTUALENV",
    }
    kept = {name: value for name, value in os.environ.items() if name.upper() not in dropped}
    return {**kept, "PYTHONNOUSERSITE": "1"}


def _run(what: str, command: list[str], hint: str = "", quiet: bool = False) -> None:
    print(f"-- {what}", flush=True)
    started = time.monotonic()
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=_clean_environment(),
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
        check=False,
    )
    if done.returncode != 0:
        if quiet:
            print((done.stdout or b"").decode(errors="replace"), file=sys.stderr)
        raise SetupError(f"{what} ended with exit code {done.returncode}. {hint}".strip())
    if time.monotonic() - started > 5:
        print(f"   {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
