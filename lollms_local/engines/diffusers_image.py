"""Pictures with diffusers: any pipeline that opens from a folder, and single checkpoints; text, edits and inpainting.

All tasks share one set of weights. Any number of jobs may run on a loaded model at once: each has a pipe object and a
scheduler of its own (`_diffusion_job`), and its picture equals the one it gets alone, to the bit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, choose_dtype, cpu_threads
from ..fit import FitPlan, plan_fit
from ..footprint import Footprint
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.image import EditInput, GeneratedImage, ImageLoadOptions, ImageOptions, ImageResult, Lora
from ._diffusers import JobHooks, check_attention, job_pipe, modules_of, named_scheduler, place, smaller_forms, tune
from ._image_arguments import image_arguments
from ._image_files import find_files
from ._image_lora import Adapters
from ._image_open import open_pipeline
from ._image_pixels import Canvas, LatentPreview, edit_canvas, text_canvas
from ._image_plan import image_workspace, vae_scale
from ._image_tasks import Tasks
from ._parking import ParksNetworks
from ._torch import foreign_errors, resolve_seed

__all__ = ["DiffusersImage"]

log = logging.getLogger(__name__)


class DiffusersImage(ParksNetworks):
    """A loaded picture model. Made by `load`."""

    modality: ClassVar[Modality] = "tti"
    load_options: ClassVar[type[LoadOptions]] = ImageLoadOptions
    concurrency: ClassVar[int] = 0
    uses_torch: ClassVar[bool] = True
    shares_rng: ClassVar[bool] = False

    def __init__(self, spec: ModelSpec, pipe: Any, device: Device, options: ImageLoadOptions, plan: FitPlan) -> None:
        self._spec = spec
        self._pipe = pipe
        self._device = device
        self._what = f"The model {spec.id}"
        self._hooks = JobHooks(pipe, deep=not options.compile)
        self._adapters = Adapters(pipe)
        self._tasks = Tasks(pipe, self._what)
        self._preview: LatentPreview | None = None
        self._setup = threading.Lock()
        # offloading moves the shared weights around, and a step cache keeps state in them: one job at a time
        alone = plan.placement in ("model_offload", "group_offload") or options.step_cache > 0
        self._turn = threading.Lock() if alone else None
        self._placement = plan.placement

    # --- loading --------------------------------------------------------------------------------------------------

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """Exact bytes of the weights from file headers, and the fit plan; see `Engine`.

        Raises:
            LoadError: files are damaged, unsafe, or no pipeline. UnsupportedRequest: an option does not fit.
        """
        dtype, why = choose_dtype(device, "diffusion", options.dtype)
        files = find_files(path, spec.variant, options, dtype, on_cuda=device.kind == "cuda")
        check_attention(options.attention)
        width, height = _planned_size(spec, files)
        plan = plan_fit(
            files.part_bytes,
            image_workspace(files, width, height, in_ram=device.kind == "cpu"),
            room_bytes=room_bytes,
            on_gpu=device.kind == "cuda",
            placement=options.placement,
            vae_slicing=options.vae_slicing,
            vae_tiling=options.vae_tiling,
        )
        return Footprint(
            weights_bytes=plan.weights_bytes,
            workspace_bytes=plan.workspace_bytes,
            host_bytes=plan.host_bytes,
            placement=(plan, files),
            reason=f"{plan.reason} {dtype}: {why}.",
        )

    @classmethod
    def smaller(cls, options: Any) -> Iterator[tuple[Any, str]]:
        """The VAE in tiles, then parts that wait in RAM until they work."""
        return smaller_forms(options)

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Load it where `footprint` said.

        Raises:
            LoadError: the library refuses the files, or tensors are missing. InsufficientMemory: no room.
        """
        import torch

        torch.set_num_threads(cpu_threads())
        plan, files = footprint.placement
        pipe = open_pipeline(files)
        with foreign_errors(f"The model {spec.id}"):
            place(pipe, device, plan)
            tuned = tune(
                pipe,
                device,
                attention=options.attention,
                channels_last=options.channels_last,
                tf32=options.tf32,
                compile_blocks=options.compile,
                step_cache=options.step_cache,
            )
        log.info("%s: %s in %s; %s", spec.id, type(pipe).__name__, files.dtype, ", ".join(tuned) or "nothing tuned")
        return cls(spec, pipe, device, options, plan)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._tasks.close()
        self._adapters.close()
        self._preview = None
        pipe, self._pipe = self._pipe, None
        if pipe is not None and getattr(pipe, "_all_hooks", None):
            pipe.remove_all_hooks()

    def _on_device(self) -> tuple[Device, list[Any]]:
        return self._device, list(modules_of(self._pipe).values()) if self._placement == "device" else []

    # --- tasks ----------------------------------------------------------------------------------------------------

    def tasks(self) -> tuple[str, ...]:
        """Which of "text", "image", "inpaint" it can do."""
        return self._tasks.able()

    # --- generation -----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        options: ImageOptions,
        control: Control,
        *,
        edit: EditInput | None = None,
        loras: Sequence[Lora] = (),
    ) -> ImageResult:
        """Make pictures; see `ImageModel`.

        Raises:
            UnsupportedRequest: this model cannot do that. GenerationError: inference failed. InsufficientMemory.
            Cancelled: within one block of a network.
        """
        control.check()
        edit = edit or EditInput()
        task, base = self._tasks.choose(edit)
        size = (options.width, options.height)
        canvas = edit_canvas(base, edit, *size) if edit.images else text_canvas(base, *size)
        scheduler = named_scheduler(base, options.scheduler)
        seed = resolve_seed(options.seed)
        seeds = [(seed + k) % (1 << 32) for k in range(options.n)]
        images: list[GeneratedImage] = []
        with self._alone(control), foreign_errors(self._what), self._adapters.using(loras, control):
            arguments, notes = image_arguments(base, prompt, options, canvas)
            chunks = [seeds[i : i + options.batch_size] for i in range(0, len(seeds), options.batch_size)]
            for done, chunk in enumerate(chunks):
                part = _share(control, done, len(chunks))
                images += self._run(base, scheduler, arguments, canvas, chunk, part, options)
        recipe = self._recipe(prompt, options, task, arguments, scheduler, canvas, loras)
        notes = (*canvas.notes, *notes)
        for note in notes:
            log.info("%s: %s", self._spec.id, note)
        return ImageResult(tuple(images), recipe, notes)

    def _run(
        self,
        base: Any,
        scheduler: Any,
        arguments: Mapping[str, Any],
        canvas: Canvas,
        seeds: Sequence[int],
        control: Control,
        options: ImageOptions,
    ) -> list[GeneratedImage]:
        """One call of the pipeline: one picture per seed."""
        import torch

        pipe = job_pipe(base, type(scheduler).from_config(scheduler.config))
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        batch: dict[str, Any] = {"generator": generators[0] if len(seeds) == 1 else generators}
        if len(seeds) > 1:
            batch["num_images_per_prompt"] = len(seeds)
        preview = self._previewer(canvas) if options.preview_every else None
        steps = int(arguments["num_inference_steps"])
        watched = self._hooks.job(control, steps, preview=preview, preview_every=options.preview_every)
        with self._settled(base), watched as job:
            made = pipe(**arguments, **batch, **job.callback_arguments(pipe)).images
        control.check()
        return [GeneratedImage(canvas.finish(image), seed) for image, seed in zip(made, seeds, strict=True)]

    @contextmanager
    def _alone(self, control: Control) -> Iterator[None]:
        """Take turns where the placement needs it; a waiting job can be stopped."""
        if self._turn is None:
            yield
            return
        while not self._turn.acquire(timeout=0.2):
            control.check()
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _settled(self, pipe: Any) -> Iterator[None]:
        """After a job that was stopped half way, offloaded parts go back to where they wait."""
        try:
            yield
        except BaseException:
            if getattr(pipe, "_all_hooks", None):
                pipe.maybe_free_model_hooks()
            raise

    def _previewer(self, canvas: Canvas) -> Any:
        with self._setup:
            if self._preview is None:
                self._preview = LatentPreview(self._pipe)
            small = self._preview
        return lambda pipe, latents: None if latents is None else small(latents, canvas.width, canvas.height)

    def _recipe(
        self,
        prompt: str,
        options: ImageOptions,
        task: str,
        arguments: Mapping[str, Any],
        scheduler: Any,
        canvas: Canvas,
        loras: Sequence[Lora],
    ) -> dict[str, Any]:
        """What shaped the pictures: the options as they were used, and the names of what used them."""
        return {
            **options.model_dump(),
            "prompt": prompt,
            "model": self._spec.id,
            "task": task,
            "pipeline": type(self._pipe).__name__,
            "steps": arguments["num_inference_steps"],
            "scheduler": options.scheduler or type(scheduler).__name__,
            "width": canvas.final[0],
            "height": canvas.final[1],
            "loras": [f"{lora.path.name}:{lora.weight:g}" for lora in loras],
            "sources": len(canvas.images),
        }


def _planned_size(spec: ModelSpec, files: Any) -> tuple[int, int]:
    """The size that memory is planned for: the catalogue's, else the model's own."""
    width, height = spec.defaults.get("width"), spec.defaults.get("height")
    if width and height:
        return int(width), int(height)
    config = files.folder.config("unet") or files.folder.config("transformer")
    sample = config.get("sample_size")
    side = int(sample[0] if isinstance(sample, list) else sample or 0) * vae_scale(files.config_vae)
    return (side, side) if side and files.folder.config("unet") else (1024, 1024)


def _share(control: Control, done: int, total: int) -> Control:
    """The control of one of several equal pieces: progress counts over all of them."""
    if control.on_progress is None or total == 1:
        return control
    tell = control.on_progress
    return replace(control, on_progress=lambda p: tell(replace(p, done=p.done + done * p.total, total=p.total * total)))
