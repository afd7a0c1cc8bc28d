"""Text to speech with VITS and MMS (transformers): small voices for more than a thousand languages."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device
from ..errors import EngineNotInstalled, GenerationError, LoadError
from ..footprint import Footprint, folder_weights_bytes
from ..media import Audio
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.speech import (
    Speech,
    SpeechLoadOptions,
    SpeechOptions,
    SpokenPiece,
    check_language,
    check_text,
    join_pieces,
    speaker_number,
)
from ..sentences import Piece, split_text
from . import _torch
from ._audio_footprint import read_config, vits_phases, work_bytes
from ._parking import ParksNetworks

__all__ = ["VitsSpeech"]

log = logging.getLogger(__name__)

#: a sentence longer than this is cut at a clause: all of it is spoken in one go, and memory grows with its length
MAX_CHARS = 400
#: how long the longest piece sounds: readers speak 13 to 15 characters a second, LJ Speech 15.2
LONGEST_S = MAX_CHARS / 13.3
#: tokens of the longest piece: a blank before and after each letter
LONGEST_TOKENS = 2 * MAX_CHARS + 1
#: ISO 639-3, which MMS uses, to ISO 639-1 for languages that have such a code and callers that use it
_SHORT_CODES = {
    "ara": "ar", "ben": "bn", "bul": "bg", "cat": "ca", "deu": "de", "ell": "el", "eng": "en", "fas": "fa", "fin": "fi",
    "fra": "fr", "guj": "gu", "heb": "he", "hin": "hi", "hun": "hu", "ind": "id", "isl": "is", "kan": "kn", "kor": "ko",
    "lav": "lv", "mal": "ml", "mar": "mr", "nld": "nl", "pan": "pa", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru",
    "spa": "es", "swe": "sv", "swh": "sw", "tam": "ta", "tel": "te", "tha": "th", "tur": "tr", "ukr": "uk", "vie": "vi",
    "yor": "yo",
}  # fmt: skip


class VitsSpeech(ParksNetworks):
    """A loaded VITS. One caller at a time, in turn with every model that draws from torch's global generator."""

    modality: ClassVar[Modality] = "tts"
    load_options: ClassVar[type[LoadOptions]] = SpeechLoadOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = True
    shares_rng: ClassVar[bool] = True

    def __init__(self, name: str, device: Device, model: Any, tokenizer: Any, language: str) -> None:
        self.name = name
        self.device = device
        self.language = language
        self.sample_rate = int(model.config.sampling_rate)
        self._model = model
        self._tokenizer = tokenizer

    # --- loading ----------------------------------------------------------------------------------------------

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """The weights in float32, whatever was asked for, and the longest piece at the voice's usual speed."""
        why = "float32: it adds up the lengths of sounds, which half precision cannot count."
        weights = folder_weights_bytes(path, spec.variant, 4, on_cuda=device.kind == "cuda")
        phases = vits_phases(read_config(path), LONGEST_S, LONGEST_TOKENS)
        return Footprint(weights, work_bytes(device, [], phases), reason=why)

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Load the network; see `Engine.load`.

        Raises:
            EngineNotInstalled: the voice reads phonemes, and the package that makes them is missing.
        """
        from transformers import VitsModel, VitsTokenizer

        what = f"The voice {spec.id}"
        model = _torch.load_pretrained(VitsModel, path, "float32", what)
        with _torch.foreign_errors(what, LoadError, "Remove the voice and download it again."):
            tokenizer = VitsTokenizer.from_pretrained(str(path), local_files_only=True)
            model.to(device.torch_name)
        if tokenizer.phonemize:
            _need("phonemizer", what, "pip install phonemizer, and espeak-ng from your system")
        return cls(spec.id, device, model, tokenizer, _language(tokenizer, spec))

    @classmethod
    def voices(cls, spec: ModelSpec, path: Path | None) -> list[str]:
        """The voice's id, and "id#number" for each speaker of a voice that has several."""
        count = 1 if path is None else _speakers(path)
        return [spec.id, *(f"{spec.id}#{n}" for n in range(count))] if count > 1 else [spec.id]

    def close(self) -> None:
        """Drop the network."""
        self._model = self._tokenizer = None

    def _on_device(self) -> tuple[Device, list[Any]]:
        return self.device, [self._model]

    # --- speaking ---------------------------------------------------------------------------------------------

    def speak(self, text: str, options: SpeechOptions, control: Control) -> Speech:
        """The whole text; see `SpeechModel`."""
        options = options.model_copy(update={"seed": _torch.resolve_seed(options.seed)})
        return join_pieces(self.stream(text, options, control), options.voice or self.name, options.seed)

    def stream(self, text: str, options: SpeechOptions, control: Control) -> Iterator[SpokenPiece]:
        """Sentence by sentence; see `SpeechModel`. Cancelled between the blocks of the network."""
        text = check_text(text)
        check_language(self.name, options.language, self.language)
        if self._model is None:
            raise GenerationError(f"The model {self.name} is closed.")
        count = int(self._model.config.num_speakers)
        speaker = speaker_number(options, self.name, {}, count)
        speaker = 0 if speaker is None and count > 1 else speaker
        seed = _torch.resolve_seed(options.seed)
        self._tell_what_is_lost(text)
        # written in Latin letters, a syllable of Korean or a word of Chinese becomes several
        size = MAX_CHARS // 3 if self._tokenizer.is_uroman and not text.isascii() else MAX_CHARS
        return self._spoken(split_text(text, size), speaker, seed, options, control)

    def _spoken(
        self, pieces: list[Piece], speaker: int | None, seed: int, options: SpeechOptions, control: Control
    ) -> Iterator[SpokenPiece]:
        for number, piece in enumerate(pieces):
            control.report(number, len(pieces), "piece", "speak")
            samples = self._say(piece.text, speaker, (seed + number) % (_torch.MAX_SEED + 1), options, control)
            if samples is not None:
                yield SpokenPiece(Audio(samples, self.sample_rate), piece.text, options.pause_s(piece.ends))
        control.report(len(pieces), len(pieces), "piece", "speak")

    def _say(self, text: str, speaker: int | None, seed: int, options: SpeechOptions, control: Control) -> Any:
        """One piece: float32 [1, samples]; None for one without a letter that the voice knows."""
        import torch

        model = self._model
        if model is None:
            raise GenerationError(f"The model {self.name} is closed.")
        if self._tokenizer.is_uroman and not text.isascii():
            _need("uroman", f"The voice {self.name}", "pip install uroman")
        watched = [model.text_encoder, *model.flow.flows, *model.decoder.upsampler, *model.decoder.resblocks]
        with (
            _torch.foreign_errors("VITS"),
            _torch.hooks(watched, control.check),
            _torch.seeded(seed, self.device),
            self._voiced(options),
            torch.no_grad(),
        ):
            inputs = self._tokenizer(text, return_tensors="pt")
            if inputs["input_ids"].shape[1] < 2:  # nothing, or one blank: the network would fail on it
                return None
            return model(**inputs.to(self.device.torch_name), speaker_id=speaker).waveform.float().cpu().numpy()

    @contextmanager
    def _voiced(self, options: SpeechOptions) -> Iterator[None]:
        """Rate and variation are attributes of the model: set while the block runs, then put back."""
        model = self._model
        own = {name: getattr(model, name) for name in ("speaking_rate", "noise_scale", "noise_scale_duration")}
        rate = 1 / options.length_scale if options.length_scale else own["speaking_rate"]
        model.speaking_rate = rate * options.speed
        if options.noise_scale >= 0:
            model.noise_scale = options.noise_scale
        if options.noise_w_scale >= 0:
            model.noise_scale_duration = options.noise_w_scale
        try:
            yield
        finally:
            for name, value in own.items():
                setattr(model, name, value)

    def _tell_what_is_lost(self, text: str) -> None:
        """Say which letters and digits the voice does not know: the tokenizer drops them without a word."""
        tokenizer = self._tokenizer
        if tokenizer.phonemize or tokenizer.is_uroman or not tokenizer.normalize:
            return
        lost = sorted({c for c in text.lower() if c.isalnum() and c not in tokenizer.encoder})
        if lost:
            log.warning("The voice %s does not know %s; they are left out.", self.name, " ".join(lost[:20]))


def _need(module: str, what: str, how: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise EngineNotInstalled(f"{what} needs the package {module}, which is not installed.", hint=f"Run: {how}")


def _language(tokenizer: Any, spec: ModelSpec) -> str:
    """ISO 639-1 code where there is one; "" if nothing says it."""
    said = str(tokenizer.language or "").lower()
    return _SHORT_CODES.get(said, said) or (spec.languages[0] if spec.languages else "")


def _speakers(folder: Path) -> int:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("num_speakers", 1))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise LoadError(
            f"{folder / 'config.json'} is missing or damaged.", hint="Remove the voice and download it again."
        ) from exc
