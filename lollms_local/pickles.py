"""Weights that a repository has only as a pickle become safetensors at the download; the pickle is not kept.

A child process reads it with torch's reader for weights alone, which runs no code of the file, writes safetensors and
compares the two tensor by tensor. What goes wrong in there, also a crash, costs nothing but the download.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import DownloadError, EngineNotInstalled

__all__ = ["CONVERTING_ENGINES", "PICKLE", "SAFE", "convert", "is_convertible", "need_torch"]

#: engines whose libraries read `model.safetensors` where `pytorch_model.bin` was published
CONVERTING_ENGINES = frozenset({"bark", "vits", "musicgen"})
PICKLE, SAFE = "pytorch_model.bin", "model.safetensors"


def is_convertible(engine: str, name: str) -> bool:
    """Whether a file of a repository may come in to be converted."""
    return engine in CONVERTING_ENGINES and name == PICKLE


def need_torch(what: str) -> None:
    """Raise EngineNotInstalled if the conversion could not be done, before anything is fetched."""
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineNotInstalled(
            f"{what} comes as a pickle, and what converts it is not installed: {', '.join(missing)}.",
            hint="Run: pip install 'lollms-local[tts]'",
        )


def convert(folder: Path, what: str, tell: Callable[[], None]) -> Path:
    """Make `model.safetensors` of the `pytorch_model.bin` in a folder, and delete that one whatever happens.

    Args:
        what: names the model in messages.
        tell: called now and then; what it raises stops the work.

    Returns:
        The new file.

    Raises:
        DownloadError: it holds more than tensors, it is damaged, or the two files differ.
    """
    source, target = folder / PICKLE, folder / SAFE
    try:
        said, code = _in_child(source, target, tell)
    finally:
        source.unlink(missing_ok=True)
    if code or not target.is_file():
        target.unlink(missing_ok=True)
        raise DownloadError(
            f"The weights of {what} are a pickle that could not be made safe: {said or f'exit code {code}'}.",
            hint="Look for the same model in safetensors.",
        )
    return target


def _in_child(source: Path, target: Path, tell: Callable[[], None]) -> tuple[str, int]:
    """The last line that the child said, and its exit code."""
    command = [sys.executable, "-m", f"{__package__}.unpickle", str(source.absolute()), str(target.absolute())]
    # the folder of this package first on the child's path: not the one with the files that are being looked at
    here = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        command, cwd=here, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        try:
            while True:
                tell()
                try:
                    _, errors = child.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            child.kill()
            raise
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return (lines[-1][:300].rstrip(".") if lines else ""), child.returncode
