"""Text to video for the LoLLMS host: films made in this process by `lollms_local`.

The host runs this file anew for every client, without a package around it: so it keeps no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_ttv_binding import LollmsTTVBinding

from lollms_local import weights
from lollms_local.catalog import ModelSpec
from lollms_local.engines import engine_class
from lollms_local.errors import LocalModelError, UnsupportedRequest
from lollms_local.host import LocalBinding, edge
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.video import (
    Video,
    VideoLoadOptions,
    VideoModel,
    VideoOptions,
    read_first_picture,
    read_sound,
    video_bytes,
)

BindingName = "LocalTTV"
TITLE = "Local films (diffusers)"
DESCRIPTION = (
    "Makes films in this process with diffusers, offline: Wan, LTX-Video, CogVideoX, AnimateDiff. MP4, no server."
)
DESCRIBED_METHODS = ("generate_video",)


class LocalTTV(LocalBinding[VideoModel], LollmsTTVBinding):
    """The host's text-to-video contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "ttv"
    load_options: ClassVar[type[LoadOptions]] = VideoLoadOptions
    call_options: ClassVar[type[VideoOptions]] = VideoOptions
    default_model: ClassVar[str] = "wan2.1-t2v-1.3b"

    def options(self, given: Mapping[str, Any], spec: ModelSpec) -> VideoOptions:
        """The call's options over the configuration's. The model's own come in the engine: on a CPU it makes a draft of
        what nobody asked for, and has to tell that from what somebody did."""
        return VideoOptions.of_call(given, self.config)

    @edge
    def generate_video(self, prompt: str, **kwargs: Any) -> bytes:
        """Make a film.

        Args:
            prompt: what happens in it.
            **kwargs: any field of `VideoOptions`, as number or text (`duration`, `fps`, `num_frames`, `size`, `seed`,
                `format` ...); `image`: the first picture, for models that start from one (bytes, base64, data URL,
                path, PIL); `audio`: a sound track (bytes of a file, path); `model`; `progress_callback`; `cancelled`.

        Returns:
            An MP4 file (H.264, plays in browsers), or what `format` says.
        """
        image = read_first_picture(_first(kwargs, "image", "image_path", "images"))
        sound = read_sound(_first(kwargs, "audio", "audio_path"))
        model = str(_first(kwargs, "model", "model_name") or "") or None
        job = self.job(model)
        self._installing(job, lambda: engine_class(job.spec.engine))
        chosen = self.options(kwargs, job.spec)

        def use(engine: VideoModel, options: VideoOptions, control: Control) -> Video:
            return engine.generate(str(prompt), options, control, image=image)

        film = self.run(use, kwargs, model=model)
        for note in film.notes:
            self._say(note)
        self._say(f"{len(film.frames)} frames, seed {film.seed}.")
        return video_bytes(film, chosen.format, sound)

    def supports_lipsync(self) -> bool:
        """No: no model here moves a mouth to a voice."""
        return False

    @edge
    def generate_lipsync_video(self, image: Any = None, audio: Any = None, prompt: str = "", **kwargs: Any) -> bytes:
        """Not possible here; raises UnsupportedRequest."""
        raise UnsupportedRequest(
            "No local model moves a mouth to a voice.",
            hint="generate_video(prompt, image=..., audio=...) animates a picture and adds the sound, no lip-sync.",
        )

    def get_capabilities(self) -> dict[str, bool]:
        """What the configured model can start from, read from its files without loading it."""
        tasks = self._abilities()
        return {
            "text_to_video": "text" in tasks,
            "image_to_video": "image" in tasks,
            "lipsync": False,
            "sound_track": True,
        }

    def _abilities(self) -> tuple[str, ...]:
        try:
            job = self.job()
            path = weights.locate(job.spec, job.models_dir)
            return tuple(engine_class(job.spec.engine).abilities(path, job.options))
        except LocalModelError as exc:  # not downloaded, or a library is missing: then what every text model can
            self._note(exc, quiet=True)
            return ("text",)


def _first(given: Mapping[str, Any], *names: str) -> Any:
    """The first of these arguments that was given."""
    return next((given[name] for name in names if given.get(name) is not None), None)


def _self_test() -> int:
    """Half a second of small film with the default model, without the client."""
    try:
        film = LocalTTV().generate_video("a heron at dawn", width=256, height=256, duration=0.5, steps=2, seed=1)
    except LocalModelError as exc:
        print(exc)
        return 1
    Path("local_ttv_self_test.mp4").write_bytes(film)
    print(f"local_ttv_self_test.mp4: {len(film)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(_self_test())
