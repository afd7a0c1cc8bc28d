"""What every engine on torch shares: loads that cannot half succeed, seeds, hooks that stop a job, errors mapped once.

Nothing here imports torch until a function runs.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..devices import Device, cpu_threads
from ..errors import GenerationError, InsufficientMemory, LoadError, LocalModelError

__all__ = [
    "MAX_SEED",
    "each_step",
    "foreign_errors",
    "hooks",
    "limit_threads",
    "load_pretrained",
    "quiet",
    "reject_absurd_config",
    "reject_missing",
    "reject_unmaterialised",
    "resolve_seed",
    "seeded",
    "stop_criterion",
    "tensor_bytes",
    "torch_dtype",
]

log = logging.getLogger(__name__)

#: seeds are drawn below this, so that they fit the generators of torch and numpy alike
MAX_SEED = 2**32 - 1

#: numbers in a config.json above which a load would spin for minutes or exhaust memory before it failed
_LIMITS = (("layers", 1_000), ("heads", 4_096), ("books", 1_024), ("vocab", 10_000_000), ("size", 10_000_000))


# --- errors -------------------------------------------------------------------------------------------------------


class _Carried(BaseException):
    """Takes the caller's own exception through a library untouched: no `except Exception` in between can eat it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(error)


@contextmanager
def foreign_errors(what: str, error: type[LocalModelError] = GenerationError, hint: str = "") -> Iterator[None]:
    """Map a torch library's errors to ours; the only place that does.

    Our own errors, and whatever the caller's progress function raised, pass through unchanged, as do TypeError and
    AttributeError: those are bugs. Frames that hold tensors are cleared, so that a failed job frees its memory.

    Args:
        what: names the work in the message, e.g. "Bark".
        error: raised for a failure that is not about memory: LoadError or GenerationError.
        hint: added to that error.

    Raises:
        InsufficientMemory: the device or the machine had no room. `error`: any other failure.
    """
    try:
        yield
    except _Carried as carried:
        traceback.clear_frames(carried.__traceback__)
        raise carried.error from None
    except LocalModelError as exc:
        traceback.clear_frames(exc.__traceback__)
        raise
    except (TypeError, AttributeError):
        raise
    except Exception as exc:  # torch raises plain RuntimeError, safetensors and others a type of their own
        traceback.clear_frames(exc.__traceback__)
        if _is_out_of_memory(exc):
            raise InsufficientMemory(
                f"{what} ran out of memory.", hint="Use a smaller model or a shorter request, or close other programs."
            ) from exc
        verb = "could not be loaded" if issubclass(error, LoadError) else "failed"
        raise error(f"{what} {verb}: {_first_line(exc)}", hint=hint) from exc


def _is_out_of_memory(exc: BaseException) -> bool:
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    text = str(exc).lower()
    return isinstance(exc, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0][:300]


# --- steps: progress and cancel -----------------------------------------------------------------------------------


def each_step(step: Callable[[], None]) -> Callable[..., None]:
    """`step` as a torch forward pre-hook: what it raises comes out of `foreign_errors` unchanged."""

    def hook(*_: Any, **__: Any) -> None:
        try:
            step()
        except BaseException as exc:
            raise _Carried(exc) from None

    return hook


@contextmanager
def hooks(modules: Iterable[Any], step: Callable[[], None]) -> Iterator[None]:
    """Call `step` before every forward pass of `modules`; to stop the work it raises.

    Raising is the only way to stop that works everywhere: flags return half-made images, criteria that return True
    crash MusicGen and Bark.
    """
    hook = each_step(step)
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stop_criterion(step: Callable[[], None]) -> Any:
    """A transformers stopping criteria list that never stops by itself: it calls `step` per token, which may raise."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    hook = each_step(step)

    class Step(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            hook()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Step()])


# --- seeds --------------------------------------------------------------------------------------------------------


def resolve_seed(seed: int) -> int:
    """The seed itself, or a fresh one for a negative number."""
    return seed % (MAX_SEED + 1) if seed >= 0 else secrets.randbelow(MAX_SEED)


@contextmanager
def seeded(seed: int, device: Device) -> Iterator[None]:
    """Draw from torch's global generators as if just seeded, and put them back afterwards.

    For models that take no generator (Bark, VITS, MusicGen). Such engines set ``shares_rng``: they take turns, because
    the generators are the process's own.
    """
    import torch

    with torch.random.fork_rng(devices=[device.index] if device.kind == "cuda" else []):
        torch.manual_seed(seed)
        yield


# --- loading ------------------------------------------------------------------------------------------------------


def quiet() -> None:
    """No progress bars and no warnings of transformers (and diffusers, where it is loaded) on the user's terminal."""
    import sys

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()


def limit_threads() -> None:
    """Give torch this process's share of the cores, unless the user has set it: more threads than cores run slower."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() != cpu_threads():
        torch.set_num_threads(cpu_threads())


def torch_dtype(name: str) -> Any:
    """The torch dtype of "float32", "bfloat16" or "float16"."""
    import torch

    return getattr(torch, name)


def load_pretrained(cls: Any, folder: Path, dtype: str, what: str, **kwargs: Any) -> Any:
    """`cls.from_pretrained` of transformers: offline, safetensors only, complete, in an explicit number format.

    Args:
        cls: a model class of transformers.
        folder: its files.
        dtype: "float32", "bfloat16" or "float16".
        what: names the model in messages.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        LoadError: files are missing or damaged, tensors are missing or of another shape, or the config is absurd.
        InsufficientMemory: no room.
    """
    limit_threads()
    quiet()
    reject_absurd_config(folder)
    hint = "Remove the model and download it again."
    with foreign_errors(what, LoadError, hint):
        model, info = cls.from_pretrained(
            str(folder),
            dtype=torch_dtype(dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **kwargs,
        )
    reject_missing(info, what)
    reject_unmaterialised(model, what)
    return model.eval()


def reject_missing(info: dict[str, Any], what: str) -> None:
    """Raise LoadError if a load left tensors at random values: a file without them loads without a word otherwise."""
    missing = sorted(info.get("missing_keys", ()))
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    if missing or wrong:
        names = ", ".join((missing or wrong)[:3])
        raise LoadError(
            f"{what}: {len(missing) + len(wrong)} tensors are missing or of another shape in its files ({names}, ...).",
            hint="The files and the config do not belong together; remove the model and download it again.",
        )


def reject_unmaterialised(module: Any, what: str = "The model") -> None:
    """Raise LoadError if any parameter or buffer has no memory ("meta"): it would compute garbage without a word."""
    for kind in (module.named_parameters(), module.named_buffers()):
        for name, tensor in kind:
            if tensor.is_meta:
                raise LoadError(
                    f"{what}: the tensor {name} was not loaded, because its files lack it.",
                    hint="Remove the model and download it again.",
                )


def reject_absurd_config(folder: Path, name: str = "config.json") -> None:
    """Raise LoadError for a config.json that is unreadable or whose numbers would keep the loader busy for ever."""
    file = folder / name
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise LoadError(f"{file} is missing or damaged.", hint="Remove the model and download it again.") from exc
    if not isinstance(config, dict):
        raise LoadError(f"{file} is damaged.", hint="Remove the model and download it again.")
    for key, number in _numbers(config):
        limit = next((most for word, most in _LIMITS if word in key), None)
        if number != number or (limit is not None and abs(number) > limit):
            raise LoadError(
                f"{file} asks for {key}={number:g}, which no model has.", hint="Remove the model and download it again."
            )


def _numbers(node: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _numbers(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _numbers(value, key)
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield key, node


def tensor_bytes(*modules: Any) -> int:
    """Bytes of all parameters and buffers, storages shared between them counted once."""
    seen: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())
