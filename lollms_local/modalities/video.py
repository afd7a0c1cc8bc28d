"""Text and image to video: options, results, and what every engine of this modality offers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from typing_extensions import Self

from .. import __version__
from ..media import Audio, decode_audio, decode_image, encode_video
from ..options import Options, auto, choice
from .base import Control, LoadOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

__all__ = [
    "MAX_SIDE",
    "Video",
    "VideoLoadOptions",
    "VideoModel",
    "VideoOptions",
    "fit_sound",
    "read_first_picture",
    "read_sound",
    "video_bytes",
]

Switch = Literal["auto", "on", "off"]
PartDType = Literal["same", "float32", "bfloat16", "float16"]

#: no model in sight makes more; a typing error of one digit must not take the machine down
MAX_SIDE = 4096
MAX_FRAMES = 10_000


class VideoLoadOptions(LoadOptions):
    """Options that shape a loaded video model."""

    placement: Literal["auto", "device", "model_offload", "group_offload", "cpu"] = choice(
        "auto", "Where its parts go: auto | device | model_offload | group_offload | cpu. auto = fastest that fits."
    )
    vae_chunks: Switch = choice(
        "auto", "Decode a few frames at a time: auto | on | off. auto = when the whole film at once would not fit."
    )
    vae_tiling: Switch = choice("auto", "Decode each frame in tiles: auto | on | off. auto = when it would not fit.")
    vae_dtype: PartDType = choice("same", "Number format of the VAE: same | float32 | bfloat16 | float16.")
    base_model: str = choice("", "AnimateDiff motion adapter: the Stable Diffusion 1.5 folder that it animates.")
    attention: str = choice(
        "auto", "Attention backend: auto | native | flash | sage | xformers ... auto = torch's own."
    )
    channels_last: bool = choice(
        False, "GPU: store convolution weights pixel by pixel; older cards may gain, an H100 lost a third of its speed."
    )
    tf32: bool = choice(True, "NVIDIA: let float32 products use TF32.")
    compile: bool = choice(False, "Compile the repeated blocks: faster steps, minutes for the first film.")
    step_cache: float = choice(
        0.0, "Skip passes that change less than this (0.05 to 0.15); 0 = off. Costs detail.", ge=0
    )


class VideoOptions(Options):
    """Options of one call. What is left automatic comes from the model's catalogue entry, then from its family."""

    aliases: ClassVar[Mapping[str, str]] = {
        "num_inference_steps": "steps",
        "inference_steps": "steps",
        "guidance_scale": "guidance",
        "guidance_scale_2": "guidance_2",
        "cfg_scale": "guidance",
        "cfg": "guidance",
        "seconds": "duration",
        "duration_s": "duration",
        "length": "duration",
        "frame_rate": "fps",
        "frames": "num_frames",
        "n_frames": "num_frames",
        "sampler": "scheduler",
        "scheduler_name": "scheduler",
        "output_format": "format",
        "video_format": "format",
        "response_format": "format",
    }

    duration: float = auto(0.0, "Length in seconds, kept to a frame; 0 = the model's usual length.", ge=0, le=600)
    fps: float = auto(0.0, "Frames per second; 0 = the model's own (8 to 24).", ge=0, le=120)
    num_frames: int = auto(0, "Number of frames; wins over duration; 0 = from duration.", ge=0, le=MAX_FRAMES)
    width: int = auto(0, "Width in pixels; 0 = the model's own.", ge=0, le=MAX_SIDE)
    height: int = auto(0, "Height in pixels; 0 = the model's own.", ge=0, le=MAX_SIDE)
    size: str = auto("", 'Both at once, e.g. "832x480"; width and height win over it.')
    quality: Literal["auto", "draft", "full"] = choice(
        "auto",
        "What is not said otherwise: auto | draft | full. full = what the model was made for; draft = small, 8 frames "
        "a second, at most 12 steps; auto = draft on a CPU, where full would take hours.",
    )
    steps: int = auto(0, "Denoising steps; 0 = what suits the model.", ge=0, le=1000)
    guidance: float = auto(-1.0, "Guidance scale; 0 = none, -1 = what suits the model.", ge=-1)
    guidance_2: float = auto(-1.0, "Wan 2.2 A14B: guidance of the second half; -1 = as the first.", ge=-1)
    negative_prompt: str = auto("", "What the film should not show.")
    seed: int = auto(-1, "Seed; the same seed gives the same film. -1 = random.", ge=-1, le=2**32 - 1)
    scheduler: str = auto("", "Sampler: unipc | euler | flow_euler | ddim | dpmpp_2m ...; empty = the model's own.")
    format: Literal["mp4", "webm", "gif"] = choice("mp4", "File format: mp4 (H.264) | webm (VP9) | gif (no sound).")

    @property
    def shape(self) -> str | None:
        """Pixels, frames, and whether a second pass guides each step; None unless all is said."""
        if not (self.width and self.height and self.num_frames):
            return None
        guided = "usual" if self.guidance < 0 else "guided" if self.guidance > 1 else "plain"
        return f"{self.width}x{self.height}x{self.num_frames} {guided}"

    @classmethod
    def of_call(cls, call: Mapping[str, Any], config: Mapping[str, Any]) -> Self:
        """A call's wishes over a configuration's, without the model's own settings, which the engine lays below.

        Of two ways to say the same, the call's hides the configuration's: a duration the configured number of frames, a
        size the configured width.

        Raises:
            UnsupportedRequest: a value is not valid.
        """
        said, hidden = cls.merge(call), set()
        if said.duration and not said.num_frames:
            hidden.add("num_frames")
        if said.size and not (said.width or said.height):
            hidden.update(("width", "height"))
        lower = {name: value for name, value in cls.merge(config).model_dump().items() if name not in hidden}
        return cls.merge(call, lower)


@dataclass(frozen=True, eq=False)
class Video:
    """A film in memory.

    Attributes:
        frames: uint8 [frames, height, width, 3].
        fps: frames per second.
        seed: makes it again.
        recipe: everything that shaped it, JSON-able: what was asked and what was chosen.
        notes: sentences for the user: a size that was rounded, a prompt that was too long.
    """

    frames: npt.NDArray[np.uint8]
    fps: float
    seed: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return len(self.frames) / self.fps


@runtime_checkable
class VideoModel(Protocol):
    """A loaded video model."""

    def generate(
        self, prompt: str, options: VideoOptions, control: Control, *, image: Image.Image | None = None
    ) -> Video:
        """Make a film from text, or from text and its first picture (RGB).

        Raises:
            UnsupportedRequest: this model cannot do that. GenerationError, InsufficientMemory, Cancelled.
        """
        ...

    def tasks(self) -> tuple[str, ...]:
        """Which of "text", "image" it can start from."""
        ...


# --- what callers hand over -----------------------------------------------------------------------------------------


def read_first_picture(source: Any) -> Image.Image | None:
    """Decode the picture a film starts from: bytes, base64, data URL, path or PIL image; transparent parts on white.

    A list counts as its first entry; None, "" and [] are no picture.

    Raises:
        MediaError: it cannot be decoded.
    """
    if isinstance(source, (list, tuple)):
        source = source[0] if source else None
    if source is None or (isinstance(source, (str, bytes)) and not source.strip()):
        return None
    from PIL import Image as Pil

    image = decode_image(source)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Pil.alpha_composite(Pil.new("RGBA", layer.size, "white"), layer).convert("RGB")


def read_sound(source: Any) -> Audio | None:
    """Decode a sound track: the bytes of a file, a path, or an `Audio`; None and "" are none.

    Raises:
        MediaError: it cannot be decoded.
    """
    if source is None or (isinstance(source, (str, bytes)) and not source):
        return None
    return source if isinstance(source, Audio) else decode_audio(source)


def fit_sound(sound: Audio, duration_s: float) -> Audio:
    """The sound, exactly as long as the film: the rest is cut off, or silence added."""
    import numpy as np

    wanted = round(duration_s * sound.sample_rate)
    samples = sound.samples[:, :wanted]
    missing = wanted - samples.shape[1]
    return Audio(np.pad(samples, ((0, 0), (0, missing))) if missing else samples, sound.sample_rate)


def video_bytes(video: Video, format: str = "mp4", sound: Audio | None = None) -> bytes:
    """A film as a file that says how it was made.

    Args:
        video: the film.
        format: "mp4", "webm" or "gif".
        sound: its track, cut or filled up to the film's length; a GIF has none.

    Raises:
        MediaError: the encoder failed.
    """
    recipe = json.dumps({**video.recipe, "seed": video.seed, "version": __version__})
    track = fit_sound(sound, video.duration_s) if sound is not None and format != "gif" else None
    metadata = {"title": str(video.recipe.get("prompt", ""))[:200], "comment": recipe}
    return encode_video(video.frames, video.fps, format, track, metadata)
