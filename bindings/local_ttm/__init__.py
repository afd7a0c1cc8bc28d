"""Text to music for the LoLLMS host: MusicGen in this process, by `lollms_local`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lollms_client.lollms_ttm_binding import LollmsTTMBinding

from lollms_local.errors import LocalModelError, UnsupportedRequest
from lollms_local.host import LocalBinding, edge
from lollms_local.media import decode_audio, encode_audio
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.music import Music, MusicLoadOptions, MusicModel, MusicOptions, MusicRequest

BindingName = "LocalTTM"
TITLE = "Local music (MusicGen)"
DESCRIPTION = "Makes music in this process with MusicGen, offline: any length, continuation, melody. No server."
DESCRIBED_METHODS = ("generate_music",)


class LocalTTM(LocalBinding[MusicModel], LollmsTTMBinding):
    """The host's text-to-music contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "ttm"
    load_options: ClassVar[type[LoadOptions]] = MusicLoadOptions
    call_options: ClassVar[type[MusicOptions]] = MusicOptions
    default_model: ClassVar[str] = "musicgen-small"

    @edge
    def generate_music(self, prompt: str | Sequence[str], model: str | None = None, **kwargs: Any) -> bytes:
        """Make music.

        Args:
            prompt: a description, or several: each rules an equal share of the time.
            model: catalogue id, repository or path; None = the configured one.
            **kwargs: any field of `MusicOptions` (`duration` in seconds, `seed`, `format` ...); `melody`: a sound whose
                melody is followed; `audio`: a sound that is continued (bytes of a file or a path); `lyrics` (see
                `generate_song_from_lyrics`); `progress_callback`; `cancelled`.

        Returns:
            A WAV file, or what `format` says.
        """
        return self._music(prompt, model, kwargs)

    @edge
    def generate_song(self, prompt: str, **kwargs: Any) -> bytes:
        """Instrumental music: no local model sings."""
        return self._music(prompt, kwargs.pop("model", None), kwargs)

    @edge
    def generate_song_from_lyrics(self, prompt: str, lyrics: str = "", **kwargs: Any) -> bytes:
        """Refused: MusicGen cannot sing. With `ignore_lyrics` the music is made without them."""
        return self._music(prompt, kwargs.pop("model", None), {**kwargs, "lyrics": lyrics})

    @edge
    def edit_music(self, audio: Any = None, prompt: str = "", mode: str = "continue", **kwargs: Any) -> bytes:
        """Go on from a given sound, or follow its melody.

        Args:
            audio: bytes of a file, or a path.
            mode: "continue" or "melody" (needs a melody model).
        """
        if mode not in ("continue", "melody"):
            raise UnsupportedRequest(f"Music cannot be edited by {mode!r}.", hint='Use mode="continue" or "melody".')
        source = audio if audio is not None else kwargs.pop("music", None)
        if source is None:
            raise UnsupportedRequest("There is no music to edit.", hint="Give audio= as bytes of a file or as a path.")
        role = {"continue": "audio", "melody": "melody"}[mode]
        return self._music(prompt, kwargs.pop("model", None), {**kwargs, role: source})

    def _music(self, prompt: str | Sequence[str], model: str | None, kwargs: Mapping[str, Any]) -> bytes:
        job = self.job(model)
        self._refuse_lyrics(kwargs, self.options(kwargs, job.spec), job.spec.id)
        request = MusicRequest(_prompts(prompt), _sound(kwargs.get("melody")), _sound(kwargs.get("audio")))

        def use(engine: MusicModel, options: MusicOptions, control: Control) -> tuple[Music, MusicOptions]:
            return engine.compose(request, options, control), options

        music, options = self.run(use, kwargs, job=job)
        facts = {"model": job.spec.id, "seed": str(music.seed)}
        return encode_audio(music.audio, options.format, metadata=facts, normalise=options.normalise)

    @staticmethod
    def _refuse_lyrics(kwargs: Mapping[str, Any], options: MusicOptions, model: str) -> None:
        if str(kwargs.get("lyrics") or "").strip() and not options.ignore_lyrics:
            raise UnsupportedRequest(
                f"The model {model} makes instrumental music and cannot sing; no model of the catalogue can.",
                hint="Set ignore_lyrics=True for the music without the lyrics. The speech model bark sings a line that "
                'stands between notes: "♪ row, row, row your boat ♪".',
            )


def _prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    texts = (prompt,) if isinstance(prompt, str) else tuple(str(part) for part in prompt or ())
    if not texts or not all(text.strip() for text in texts):
        raise UnsupportedRequest("There is no description of the music.", hint="Say what it should sound like.")
    return texts


def _sound(source: Any) -> Any:
    return None if source is None else decode_audio(source)


def _self_test() -> int:
    """Three seconds of music with the default model, without the client."""
    try:
        sound = LocalTTM().generate_music("a calm waltz for piano", duration=3)
    except LocalModelError as exc:
        print(exc)
        return 1
    Path("local_ttm_self_test.wav").write_bytes(sound)
    print(f"local_ttm_self_test.wav: {len(sound)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(_self_test())
