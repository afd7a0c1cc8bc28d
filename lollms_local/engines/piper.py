"""Text to speech with Piper voices (ONNX): faster than real time on a CPU.

The library is GPL-3, so it is an extra of its own and only imported here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, cpu_threads
from ..errors import (
    EngineNotInstalled,
    GenerationError,
    InsufficientMemory,
    LoadError,
    LocalModelError,
)
from ..footprint import Footprint
from ..media import Audio
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.speech import (
    Speech,
    SpeechLoadOptions,
    SpeechOptions,
    SpokenPiece,
    base_language,
    check_language,
    check_text,
    join_pieces,
    speaker_number,
)
from ..sentences import Piece, split_text

if TYPE_CHECKING:
    from piper import PiperVoice

__all__ = ["PiperSpeech"]

#: a sentence longer than this is cut at a clause: memory grows with its square, and the first sound would come late
MAX_CHARS = 400
#: what onnxruntime's arena holds after a 400-character sentence, measured with a medium voice (100 characters: 80 MB);
#: it is given back when the voice is unloaded. Without an arena a sentence takes a fifth to a third longer
WORKSPACE_BYTES = 480 << 20
_CONFIG_KEYS = ("num_symbols", "num_speakers", "audio", "espeak", "phoneme_id_map")
#: onnxruntime takes seeds process-wide, at the birth of a session
_SEED_LOCK = threading.Lock()


class PiperSpeech:
    """A loaded Piper voice. Several callers may speak at a time: a session is safe to share."""

    modality: ClassVar[Modality] = "tts"
    load_options: ClassVar[type[LoadOptions]] = SpeechLoadOptions
    concurrency: ClassVar[int] = 0
    uses_torch: ClassVar[bool] = False
    shares_rng: ClassVar[bool] = False

    def __init__(self, name: str, model: Path, voice: PiperVoice, language: str) -> None:
        self.name = name
        self.sample_rate: int = voice.config.sample_rate
        self.language = language
        self._model = model
        self._voice: PiperVoice | None = voice

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """The file's size: ONNX weights are held as they are stored."""
        model, _ = _files(path)
        return Footprint(model.stat().st_size, WORKSPACE_BYTES, reason="Piper runs on the CPU, faster than real time.")

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Open the voice on the CPU: a GPU would not make it faster to hear."""
        model, config_file = _files(path)
        config = _read_config(config_file)
        with _piper_errors(f"The voice {spec.id}", LoadError):
            from piper import PiperVoice
            from piper.config import PiperConfig

            voice = PiperVoice(config=PiperConfig.from_dict(config), session=_session(model), download_dir=model.parent)
        kind = voice.config.phoneme_type.value
        if kind == "pinyin" and not (model.parent / "g2pW").is_dir():
            raise LoadError(
                f"The voice {spec.id} needs the g2pW files for Chinese, which are not beside it.",
                hint=f"Put the folder g2pW into {model.parent}; nothing is fetched while a model loads.",
            )
        return cls(spec.id, model, voice, _language(config, spec))

    @classmethod
    def voices(cls, spec: ModelSpec, path: Path | None) -> list[str]:
        """The voice's id, and "id#speaker" for each speaker of a voice that has several."""
        if path is None:
            return [spec.id]
        speakers = _read_config(_files(path)[1]).get("speaker_id_map") or {}
        return [spec.id, *(f"{spec.id}#{name}" for name in speakers)] if len(speakers) > 1 else [spec.id]

    def close(self) -> None:
        """Drop the session."""
        self._voice = None

    # --- speaking ---------------------------------------------------------------------------------------------

    def speak(self, text: str, options: SpeechOptions, control: Control) -> Speech:
        """The whole text; see `SpeechModel`."""
        return join_pieces(self.stream(text, options, control), options.voice or self.name, options.seed)

    def stream(self, text: str, options: SpeechOptions, control: Control) -> Iterator[SpokenPiece]:
        """Sentence by sentence; see `SpeechModel`. Cancelled between sentences of at most 400 characters."""
        text = check_text(text)
        check_language(self.name, options.language, self.language)
        config = self._settings(options)
        pieces = split_text(text, MAX_CHARS)
        voice = self._seeded(options.seed)
        return self._spoken(voice, pieces, config, options, control)

    def _spoken(
        self, voice: PiperVoice, pieces: list[Piece], config: Any, options: SpeechOptions, control: Control
    ) -> Iterator[SpokenPiece]:
        for number, piece in enumerate(pieces):
            control.report(number, len(pieces), "piece", "speak")
            samples = self._say(voice, piece.text, config)
            if samples is not None:
                yield SpokenPiece(Audio(samples, self.sample_rate), piece.text, options.pause_s(piece.ends))
        control.report(len(pieces), len(pieces), "piece", "speak")

    def _say(self, voice: PiperVoice, text: str, config: Any) -> Any:
        """One piece as one breath, float32 [samples]; None for a piece without a sound in it, such as a row of dots."""
        import numpy as np

        with _piper_errors(f"The voice {self.name}", GenerationError):
            phonemes = _one_breath(voice.phonemize(text))
            if not phonemes:
                return None
            samples = voice.phoneme_ids_to_audio(voice.phonemes_to_ids(phonemes), config)
        peak = float(np.max(np.abs(samples), initial=0.0))
        # the library's own normalisation, so that our speech equals its speech to the bit
        samples = np.zeros_like(samples) if peak < 1e-8 else samples / np.max(np.abs(samples))
        return np.clip(samples, -1.0, 1.0).astype(np.float32)

    def _seeded(self, seed: int) -> PiperVoice:
        """The shared voice, or for a given seed one whose generator has just been born with it (about 0.5 s)."""
        import dataclasses

        voice = self._voice
        if voice is None:
            raise GenerationError(f"The voice {self.name} is closed.")
        if seed < 0:
            return voice
        with _piper_errors(f"The voice {self.name}", LoadError):
            return dataclasses.replace(voice, session=_session(self._model, seed))

    # --- options ----------------------------------------------------------------------------------------------

    def _settings(self, options: SpeechOptions) -> Any:
        from piper.config import SynthesisConfig

        voice = self._voice
        if voice is None:
            raise GenerationError(f"The voice {self.name} is closed.")
        length = (options.length_scale or voice.config.length_scale) / options.speed
        return SynthesisConfig(
            speaker_id=speaker_number(options, self.name, voice.config.speaker_id_map, voice.config.num_speakers),
            length_scale=length,
            noise_scale=options.noise_scale if options.noise_scale >= 0 else None,
            noise_w_scale=options.noise_w_scale if options.noise_w_scale >= 0 else None,
        )


def _one_breath(chunks: list[list[str]]) -> list[str]:
    """Phonemes of one piece.

    espeak ends a sentence after "Mr."; the text was cut by us already, so such parts are joined again.
    """
    joined: list[str] = []
    for chunk in chunks:
        if joined:
            if joined[-1] == ".":
                joined.pop()
            joined.append(" ")
        joined += chunk
    return joined


def _files(path: Path) -> tuple[Path, Path]:
    """The voice and its description, in a folder or as a file."""
    models = [path] if path.is_file() else sorted(path.glob("*.onnx"))
    if len(models) != 1:
        raise LoadError(
            f"{path} holds {len(models)} ONNX voices, not one.",
            hint="Name the .onnx file itself, or download it again.",
        )
    config = models[0].with_name(models[0].name + ".json")
    if not config.is_file():
        raise LoadError(f"The description {config.name} of the voice is missing.", hint=f"Put it beside {models[0]}.")
    return models[0], config


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        complete = all(key in config for key in _CONFIG_KEYS) and "sample_rate" in config["audio"]
        complete = complete and "voice" in config["espeak"]
    except (OSError, ValueError, TypeError, RecursionError) as exc:
        raise _bad_config(file) from exc
    if not complete:
        raise _bad_config(file)
    return config  # type: ignore[no-any-return]


def _bad_config(file: Path) -> LoadError:
    return LoadError(f"{file} is not the description of a Piper voice.", hint="Remove the voice and download it again.")


def _language(config: dict[str, Any], spec: ModelSpec) -> str:
    """ISO 639-1 code: the description's own word, else the catalogue's, else espeak's voice."""
    said = config.get("language")
    family = said.get("family") or said.get("code") if isinstance(said, dict) else ""
    return base_language(str(family or (spec.languages[0] if spec.languages else "") or config["espeak"]["voice"]))


def _session(model: Path, seed: int | None = None) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = cpu_threads()
    settings.inter_op_num_threads = 1
    with _SEED_LOCK:
        if seed is not None:
            onnxruntime.set_seed(seed)
        return onnxruntime.InferenceSession(str(model), sess_options=settings, providers=["CPUExecutionProvider"])


@contextmanager
def _piper_errors(what: str, error: type[LocalModelError]) -> Iterator[None]:
    """Map what piper and onnxruntime raise; the only place that does."""
    try:
        yield
    except (LocalModelError, TypeError, AttributeError):
        raise
    except ImportError as exc:  # Hebrew, Japanese, Thai and Chinese voices need packages of their own
        raise EngineNotInstalled(
            f"{what} needs the package {exc.name}, which is not installed.", hint=f"Run: pip install {exc.name}"
        ) from exc
    except MemoryError as exc:
        raise InsufficientMemory(f"{what} ran out of memory.", hint="Close other programs.") from exc
    except Exception as exc:  # onnxruntime raises classes that share no base but Exception
        verb = "could not be loaded" if issubclass(error, LoadError) else "failed"
        hint = "Remove the voice and download it again." if issubclass(error, LoadError) else ""
        raise error(
            f"{what} {verb}: {(str(exc).strip() or type(exc).__name__).splitlines()[0][:300]}", hint=hint
        ) from exc
