"""Films with diffusers: Wan, LTX-Video, CogVideoX, AnimateDiff, text-to-video SD; from text or a first picture."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, choose_dtype
from ..errors import GenerationError, UnsupportedRequest
from ..fit import FitPlan, plan_fit
from ..footprint import Footprint
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.video import Video, VideoLoadOptions, VideoOptions
from ._diffusers import (
    DTYPE_WIDTH,
    JobHooks,
    check_attention,
    job_pipe,
    modules_of,
    named_scheduler,
    place,
    smaller_forms,
    tune,
)
from ._parking import ParksNetworks
from ._torch import each_step, foreign_errors, limit_threads, resolve_seed
from ._video_call import film_arguments, starting_from_picture
from ._video_decode import DecodeMode, choose_decoding, decoder_passes, film_workspace, frames_as_bytes, set_up
from ._video_open import VideoFiles, check_packages, find_video_files, open_video_pipeline
from ._video_request import FilmRequest, plan_film

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DiffusersVideo"]

log = logging.getLogger(__name__)

#: room for a decode that needs no plan: below this the VAE works as the plain pipeline's does, whatever was planned
_LEAST_DECODE_BYTES = 1 << 30


class DiffusersVideo(ParksNetworks):
    """A loaded video model. Made by `load`.

    Jobs are safe side by side (each has a pipe object, a scheduler and a VAE shell of its own), but the manager lets in
    one at a time: a film takes gigabytes of activations, which are claimed once, and two would each take twice as long.
    """

    modality: ClassVar[Modality] = "ttv"
    load_options: ClassVar[type[LoadOptions]] = VideoLoadOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = True
    shares_rng: ClassVar[bool] = False

    def __init__(
        self, spec: ModelSpec, pipe: Any, files: VideoFiles, device: Device, options: VideoLoadOptions, plan: FitPlan
    ) -> None:
        self._spec = spec
        self._pipe = pipe
        self._from_image: Any = None
        self._files = files
        self._rules = files.rules
        self._device = device
        self._options = options
        self._decode_room_bytes = max(plan.workspace_bytes, _LEAST_DECODE_BYTES)
        self._planned_chunks, self._planned_tiles = plan.vae_slicing, plan.vae_tiling
        self._what = f"The model {spec.id}"
        self._hooks = JobHooks(pipe, deep=not options.compile)
        self._decoding = threading.local()
        pipe.vae.decoder.register_forward_pre_hook(each_step(self._on_decode))
        # offloading moves the shared weights around, and a step cache keeps state in them: one job at a time
        self._turn = threading.Lock()
        self._placement = plan.placement
        self._alone = plan.placement in ("model_offload", "group_offload") or options.step_cache > 0

    # --- loading --------------------------------------------------------------------------------------------------

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """Exact bytes of the weights from file headers, and the fit plan; see `Engine`.

        Raises:
            LoadError: files are damaged, unsafe, or of no known family. UnsupportedRequest: an option does not fit.
            EngineNotInstalled: a package that generation would need is missing.
        """
        dtype, why = choose_dtype(device, "diffusion", options.dtype)
        files = replace(find_video_files(path, spec.variant, options, dtype), on_cuda=device.kind == "cuda")
        check_attention(options.attention)
        usual = plan_film(files.rules, VideoOptions(), spec.defaults, on_cpu=device.kind == "cpu")
        plan = plan_fit(
            files.part_bytes,
            film_workspace(
                files.rules,
                usual.width,
                usual.height,
                usual.ask_frames,
                DTYPE_WIDTH[dtype],
                DTYPE_WIDTH[files.vae_dtype()],
            ),
            room_bytes=room_bytes,
            on_gpu=device.kind == "cuda",
            placement=options.placement,
            vae_slicing=options.vae_chunks,
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
        limit_threads()
        plan, files = footprint.placement
        pipe = open_video_pipeline(files)
        with foreign_errors(f"The model {spec.id}"):
            # how the VAE works is each job's own choice
            place(pipe, device, replace(plan, vae_slicing=False, vae_tiling=False))
            tuned = tune(
                pipe,
                device,
                attention=options.attention,
                channels_last=options.channels_last and files.rules.decoding in ("batch", "slices"),
                tf32=options.tf32,
                compile_blocks=options.compile,
                step_cache=options.step_cache,
            )
        log.info("%s: %s in %s; %s", spec.id, type(pipe).__name__, files.dtype, ", ".join(tuned) or "nothing tuned")
        return cls(spec, pipe, files, device, options, plan)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._pipe = self._from_image = None

    def _on_device(self) -> tuple[Device, list[Any]]:
        return self._device, list(modules_of(self._pipe).values()) if self._placement == "device" else []

    # --- what it can do -------------------------------------------------------------------------------------------

    @classmethod
    def abilities(cls, path: Path, options: VideoLoadOptions) -> tuple[str, ...]:
        """Which of "text", "image" a model on disk can start from; from its files' names and configurations alone.

        Raises:
            LocalModelError: as `footprint`.
        """
        return _tasks(find_video_files(path, "", options, "float32"))

    def tasks(self) -> tuple[str, ...]:
        """Which of "text", "image" it can start from."""
        return _tasks(self._files)

    # --- generation -----------------------------------------------------------------------------------------------

    def generate(
        self, prompt: str, options: VideoOptions, control: Control, *, image: Image.Image | None = None
    ) -> Video:
        """Make a film from text, or from text and its first picture.

        Args:
            prompt: what happens in it.
            options: one call's wishes; what they leave automatic comes from the model's defaults.
            control: told of every step and every decoded chunk; may stop the job at any block of any network.
            image: RGB; cut to the film's shape around its centre.

        Raises:
            UnsupportedRequest: the model cannot do that. GenerationError, InsufficientMemory, Cancelled.
        """
        self._check_task(image)
        request = plan_film(
            self._rules,
            options,
            self._spec.defaults,
            on_cpu=self._device.kind == "cpu",
            picture_size=image.size if image is not None else None,
        )
        asked = VideoOptions.merge(options.model_dump(), self._spec.defaults)
        seed = resolve_seed(asked.seed)
        mode = self._decode_mode(request)
        pipe = job_pipe(self._pipe_for(image), named_scheduler(self._pipe, asked.scheduler))
        decoding = set_up(pipe, self._rules, mode)
        frames_as_bytes(pipe, request.keep_frames)
        arguments, notes = film_arguments(pipe, self._rules, prompt, asked, request, image, seed)
        with control.behind_conversations() as control:
            frames = self._run(pipe, {**arguments, **decoding}, request, mode, control)
        if len(frames) != request.keep_frames:
            raise GenerationError(
                f"{self._what} made {len(frames)} frames where {request.keep_frames} were asked for.",
                hint="Ask for another number of frames.",
            )
        notes = (*request.notes, *notes, *_decode_notes(mode))
        return Video(frames, request.fps, seed, self._recipe(prompt, asked, request, pipe, image), notes)

    def _check_task(self, image: Image.Image | None) -> None:
        if image is not None and "image" not in self.tasks():
            raise UnsupportedRequest(
                f"{self._what} ({self._rules.family}) cannot start from a picture.",
                hint="Leave the picture out, or choose an image-to-video model (Wan TI2V or I2V, LTX-Video).",
            )
        if image is None and "text" not in self.tasks():
            raise UnsupportedRequest(
                f"{self._what} needs a first picture to start from.",
                hint="Give one as image=, or choose another model.",
            )
        if image is not None:
            check_packages(self._rules)

    def _pipe_for(self, image: Any) -> Any:
        if image is None:
            return self._pipe
        if self._from_image is None:
            self._from_image = starting_from_picture(self._pipe, self._rules)
        return self._from_image

    def _decode_mode(self, request: FilmRequest) -> DecodeMode:
        chunks, tiles = self._options.vae_chunks, self._options.vae_tiling
        return choose_decoding(
            self._rules,
            request.width,
            request.height,
            request.ask_frames,
            DTYPE_WIDTH[self._files.vae_dtype()],
            self._decode_room_bytes,
            chunks="on" if self._planned_chunks and chunks == "auto" else chunks,
            tiling="on" if self._planned_tiles and tiles == "auto" else tiles,
        )

    def _run(
        self, pipe: Any, arguments: Mapping[str, Any], request: FilmRequest, mode: DecodeMode, control: Control
    ) -> Any:
        """Call the pipeline; uint8 [frames, height, width, 3]."""
        self._decoding.job = (control, decoder_passes(self._rules, request.ask_frames, mode))
        self._decoding.passes = 0
        turn = self._turn if self._alone else threading.Lock()
        try:
            with turn, foreign_errors(self._what), self._hooks.job(control, request.steps) as job:
                return pipe(**arguments, **job.callback_arguments(pipe)).frames[0]
        finally:
            self._decoding.job = None

    def _on_decode(self) -> None:
        """Before a pass of the VAE's decoder."""
        job = getattr(self._decoding, "job", None)
        if job is not None:
            control, total = job
            control.report(self._decoding.passes, total, "chunk", "decode")
            self._decoding.passes += 1

    def _recipe(
        self, prompt: str, options: VideoOptions, request: FilmRequest, pipe: Any, image: Any
    ) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "negative_prompt": options.negative_prompt,
            "model": self._spec.id,
            "width": request.width,
            "height": request.height,
            "num_frames": request.keep_frames,
            "fps": request.fps,
            "steps": request.steps,
            "guidance": request.guidance,
            "scheduler": type(pipe.scheduler).__name__,
            "from_picture": image is not None,
        }


def _tasks(files: VideoFiles) -> tuple[str, ...]:
    rules = files.rules
    return tuple(name for name, able in (("text", rules.from_text), ("image", rules.from_image)) if able)


def _decode_notes(mode: DecodeMode) -> tuple[str, ...]:
    if mode == "tiles":
        return ("The frames were decoded in tiles, to save memory.",)
    return ("The frames were decoded a few at a time, to save memory.",) if mode == "chunks" else ()
