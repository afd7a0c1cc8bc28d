"""The child process of `pickles`: `python -m lollms_local.unpickle pytorch_model.bin model.safetensors`."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

__all__ = ["to_safetensors"]


def to_safetensors(source: Path, target: Path) -> None:
    """Write the tensors of a pickle as safetensors and compare them bit for bit.

    Raises:
        ValueError: it holds something else, or the copy differs. Whatever torch raises for a file it does not accept.
    """
    from safetensors.torch import save_file

    tensors = _tensors(source)
    temporary = target.with_name(target.name + ".tmp")
    save_file(_apart(tensors), temporary, metadata={"format": "pt"})
    _compare(tensors, temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)


def _tensors(source: Path) -> dict[str, Any]:
    import torch

    table = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    if not isinstance(table, dict) or not table:
        raise ValueError("it is not a table of tensors")
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"its entry {str(name)[:80]!r} is not a tensor")
    return {name: tensor.detach() for name, tensor in table.items()}


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same tensors, each with memory of its own and in order: the format knows neither sharing nor strides."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return found


def _compare(tensors: dict[str, Any], file: Path) -> None:
    """Raise ValueError if the file holds anything but these tensors; bits are compared, so that NaN equals NaN."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as copy:
        if set(copy.keys()) != set(tensors):
            raise ValueError("the copy has other tensors")
        for name, tensor in tensors.items():
            other = copy.get_tensor(name)
            same = other.dtype == tensor.dtype and other.shape == tensor.shape
            if not same or not torch.equal(_bytes(other), _bytes(tensor)):
                raise ValueError(f"the copy of {name!r} differs")


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def main() -> int:
    """Convert what the command line names; one line on standard error if it cannot be done."""
    source, target = map(Path, sys.argv[1:3])
    try:
        to_safetensors(source, target)
    except Exception as exc:  # a file from anywhere: torch raises many classes; all of them mean no
        text = str(exc).strip().splitlines() or [type(exc).__name__]
        refused = next((line for line in text if "GLOBAL" in line or "Unsupported" in line), text[0])
        print(f"{type(exc).__name__}: {refused.strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
