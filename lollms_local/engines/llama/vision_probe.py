"""Try a projector in a process of its own: llama.cpp ends the process over many kinds of damage.

    python -m lollms_local.engines.llama.vision_probe MODEL PROJECTOR

Loads both (the model's weights stay on the disk), and looks at a grey picture. The last line on stderr says what is
wrong, if the library could say it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from ...errors import LoadError, LocalModelError

__all__ = ["try_projector"]

#: exit status for an error that was told
TOLD = 3
MAX_S = 300
_TOP = Path(__file__).resolve().parents[3]


def try_projector(model: Path, projector: Path) -> None:
    """Refuse a projector over which the library would end this process. The answer is kept while the file is the same.

    Raises:
        LoadError: the child was told no, or died.
    """
    if getattr(sys, "frozen", False):
        return  # sys.executable is the application itself, not Python
    seen = projector.stat()
    _tried(model.resolve(), projector.resolve(), seen.st_size, seen.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _tried(model: Path, projector: Path, size: int, mtime_ns: int) -> None:
    command = [sys.executable, "-m", __name__, str(model), str(projector)]
    # its own report of a crash starts a debugger, which takes many seconds
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    hint = 'Download it again, or use mmproj="none" to do without images.'
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, cwd=_TOP, env=environment, timeout=MAX_S
        )
    except subprocess.TimeoutExpired as exc:
        raise LoadError(f"The projector {projector.name} kept llama.cpp busy for {MAX_S} s.", hint=hint) from exc
    if done.returncode == TOLD:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise LoadError(lines[-1], hint=hint)
    if done.returncode:
        raise LoadError(f"The projector {projector.name} is damaged: it made llama.cpp end its process.", hint=hint)


def main() -> int:
    """Read the arguments; 0 if the projector works."""
    from .native import NativeModel
    from .vision import Eyes

    model_path, projector = map(Path, sys.argv[1:])
    try:
        model = NativeModel(model_path)
        eyes = Eyes(model, projector, n_threads=1, use_gpu=False)
        eyes.try_out()
    except LocalModelError as exc:
        print(exc.message.replace("\n", " "), file=sys.stderr)
        return TOLD
    eyes.close()
    model.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
