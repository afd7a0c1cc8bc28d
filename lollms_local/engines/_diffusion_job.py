"""Jobs on a loaded pipeline: progress, cancel and previews by hooks; a pipe object and a scheduler for each job.

Several jobs may use the same weights at once. What a job changes is its own: the pipe object, the scheduler, and shells
of parts that keep state between calls (the VAEs of Qwen-Image and Wan hold a feature cache). The hooks are put into the
shared networks once, at load, and find the job of the calling thread: adding and removing hooks while another thread
runs the same module would not be safe.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import UnsupportedRequest
from ..modalities.base import Control
from ._torch import each_step

__all__ = ["JobHooks", "RunningJob", "accepted", "job_pipe", "named_scheduler", "scheduler_names"]

#: names that diffusers gives the network that runs once or more per step
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")

Preview = Callable[[Any, Any], Any]


class RunningJob:
    """One call of a pipeline, seen from its hooks.

    Args:
        control: told of every step; asked at every block of every network.
        steps: steps that were asked for; used as the total where the pipeline does not say better.
        preview: makes a small picture of (pipe, latents), or None.
        preview_every: steps between two previews.
    """

    def __init__(self, control: Control, steps: int, preview: Preview | None = None, preview_every: int = 1) -> None:
        self.control = control
        self.steps = steps
        self.preview = preview
        self.preview_every = max(1, preview_every)
        self.passes = 0
        self.told_by_callback = False

    def callback_arguments(self, pipe: Any) -> dict[str, Any]:
        """What to pass to `pipe(...)` so that it reports its steps; {} where it cannot, then passes are counted."""
        self.told_by_callback = "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
        return {"callback_on_step_end": self._on_step_end} if self.told_by_callback else {}

    def _on_step_end(self, pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        # the pipeline's own number: PNDM runs one step more than asked, Heun nearly twice as many, image to image fewer
        total = getattr(pipe, "num_timesteps", 0) or self.steps
        image = None
        if self.preview is not None and (index + 1) % self.preview_every == 0 and index + 1 < total:
            image = self.preview(pipe, values.get("latents"))
        self._report(index + 1, total, image)
        return values

    def _report(self, done: int, total: int, image: Any = None) -> None:
        def tell() -> None:
            self.control.report(done, total, "step", "denoise", image)

        each_step(tell)()

    def on_denoiser(self) -> None:
        """Before a pass of the denoiser."""
        self.passes += 1
        if not self.told_by_callback:
            self.control.report(min(self.passes, self.steps), self.steps, "step", "denoise")


class JobHooks:
    """Hooks in a pipeline's networks that serve the job of the thread they run in.

    Args:
        pipe: a loaded pipeline; its derived ones share the networks and with them these hooks.
        deep: hook every block too, so that a job stops within a step; False keeps compiled blocks free of hooks.
    """

    def __init__(self, pipe: Any, *, deep: bool = True) -> None:
        _lock_tokenizers(pipe)
        self._local = threading.local()
        check, count = each_step(self._check), each_step(self._count)
        for name, module in _networks(pipe):
            if name in DENOISERS:
                module.register_forward_pre_hook(count)
            for inner in _interruption_points(name, module) if deep or name == "vae" else ():
                inner.register_forward_pre_hook(check)

    def _check(self) -> None:
        job: RunningJob | None = getattr(self._local, "job", None)
        if job is not None:
            job.control.check()

    def _count(self) -> None:
        job: RunningJob | None = getattr(self._local, "job", None)
        if job is not None:
            job.control.check()
            job.on_denoiser()

    @contextmanager
    def job(
        self, control: Control, steps: int, *, preview: Preview | None = None, preview_every: int = 1
    ) -> Iterator[RunningJob]:
        """Serve one call of the pipeline made by this thread; must lie inside `foreign_errors`.

        Example:
            with foreign_errors("SD"), hooks.job(control, 20) as job:
                pipe(**job.callback_arguments(pipe), **arguments)
        """
        before = getattr(self._local, "job", None)
        self._local.job = RunningJob(control, steps, preview, preview_every)
        try:
            yield self._local.job
        finally:
            self._local.job = before


def _lock_tokenizers(pipe: Any) -> None:
    """Let one thread at a time into each tokenizer.

    A fast tokenizer keeps padding and truncation as a state that every call sets and then uses: seen between two
    threads, one's prompt was cut or padded as the other had asked.
    """
    for part in pipe.components.values():
        inner = getattr(part, "_encode_plus", None)
        if inner is not None:
            part._encode_plus = _one_at_a_time(inner)


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.RLock()

    @functools.wraps(function)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return function(*args, **kwargs)

    return locked


def _networks(pipe: Any) -> Iterator[tuple[str, Any]]:
    import torch

    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            yield name, part


def _interruption_points(name: str, module: Any) -> list[Any]:
    """Where a job may be stopped: the members of every list of blocks; every leaf of a VAE (its blocks are slow)."""
    import torch

    if name == "vae":
        return [m for m in module.modules() if not any(True for _ in m.children())]
    lists = [m for m in module.modules() if isinstance(m, torch.nn.ModuleList)]
    return list({id(block): block for blocks in lists for block in blocks}.values())


def job_pipe(pipe: Any, scheduler: Any = None) -> Any:
    """A pipe object for one job: shared weights, a scheduler of its own, shells of parts that keep state.

    Args:
        pipe: a loaded pipeline, of any task.
        scheduler: the job's scheduler; None = a fresh one like the pipe's.
    """
    clone = copy.copy(pipe)
    if scheduler is None and getattr(pipe, "scheduler", None) is not None:
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    if scheduler is not None:
        clone.scheduler = scheduler
    vae = getattr(clone, "vae", None)
    if hasattr(vae, "clear_cache"):
        # nn.Module keeps parameters and children in dictionaries: a shallow copy shares them and owns the rest
        vars(clone)["vae"] = copy.copy(vae)
    return clone


def accepted(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that this pipeline's `__call__` knows by name."""
    known = inspect.signature(pipe.__call__).parameters
    return {name: value for name, value in arguments.items() if name in known}


# --- schedulers ---------------------------------------------------------------------------------------------------

#: common name -> class and settings, as other front ends call them
_SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
_ALIASES = {"euler_ancestral": "euler_a", "dpm++_2m": "dpmpp_2m", "dpm++_2m_karras": "dpmpp_2m_karras", "plms": "pndm"}
#: what a scheduler needs beyond diffusers
_NEEDS = {"DPMSolverSDEScheduler": "torchsde", "LMSDiscreteScheduler": "scipy"}


def scheduler_names(pipe: Any) -> list[str]:
    """Names that `named_scheduler` takes for this pipeline."""
    fitting = _fitting(pipe)
    return [name for name, (cls, _) in _SCHEDULERS.items() if cls in fitting]


def _fitting(pipe: Any) -> set[str]:
    """Class names that work with this pipeline: constructing any other never fails, generating with it does."""
    names = {cls.__name__ for cls in pipe.scheduler.compatibles} | {type(pipe.scheduler).__name__}
    # these three do not list themselves as compatible, and were seen to work wherever DDIM does
    return names | {"LCMScheduler", "TCDScheduler", "SASolverScheduler"} if "DDIMScheduler" in names else names


def named_scheduler(pipe: Any, name: str) -> Any:
    """A fresh scheduler for a job.

    Args:
        pipe: the pipeline; its own scheduler's configuration is the base.
        name: a common name ("euler_a", "dpmpp_2m_karras" ...) or a class name; "" = the pipeline's own.

    Raises:
        UnsupportedRequest: unknown, not for this pipeline, or it needs a library that is missing; lists what fits.
    """
    import importlib.util

    import diffusers

    config = pipe.scheduler.config
    if not name.strip() or name.strip().lower() in ("auto", "default"):
        return type(pipe.scheduler).from_config(config)
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    key = _ALIASES.get(key, key)
    class_name, settings = _SCHEDULERS.get(key, (name.strip(), {}))
    fitting = _fitting(pipe)
    if class_name not in fitting:
        raise UnsupportedRequest(
            f"The scheduler {name!r} does not work with {type(pipe).__name__}.",
            hint=f"These do: {', '.join(scheduler_names(pipe)) or type(pipe.scheduler).__name__}.",
        )
    needed = _NEEDS.get(class_name)
    if needed and importlib.util.find_spec(needed) is None:
        raise UnsupportedRequest(
            f"The scheduler {name!r} needs the library {needed}, which is not installed.",
            hint=f"Run: pip install {needed}",
        )
    cls = getattr(diffusers, class_name)
    return cls.from_config(config, **settings)
