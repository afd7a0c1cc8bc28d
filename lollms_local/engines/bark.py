"""Text to speech with Bark (transformers): expressive, many languages, laughs and hums, slow without a GPU.

Four networks work in turn: text -> semantic tokens -> coarse codes -> fine codes -> sound. A piece is at most about
13 s of speech, so longer texts are cut at sentence ends and every piece is spoken with the same voice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, choose_dtype
from ..errors import GenerationError, LoadError, UnsupportedRequest
from ..footprint import Footprint, folder_weights_bytes, read_safetensors, weight_files
from ..media import Audio
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.speech import (
    Speech,
    SpeechLoadOptions,
    SpeechOptions,
    SpokenPiece,
    base_language,
    check_text,
    join_pieces,
)
from ..sentences import Piece, split_text
from . import _bark_voices, _torch
from ._audio_footprint import bark_work, read_config, work_bytes
from ._bark_parts import PARTS, PartsInTurn
from ._parking import ParksNetworks

__all__ = ["BarkSpeech"]

LANGUAGES = _bark_voices.LANGUAGES
#: about 13 s of speech, which is what Bark was trained on; Chinese, Japanese and Korean characters are whole syllables
MAX_CHARS, MAX_CHARS_WIDE = 200, 60
WIDE = ("zh", "ja", "ko")
#: tokens of text that the model reads; the library drops the rest without a word
MAX_TOKENS = 256
#: file with the longest piece
SETTINGS = "generation_config.json"


class BarkSpeech(ParksNetworks):
    """A loaded Bark. One caller at a time, and in turn with every model that draws from torch's global generator."""

    modality: ClassVar[Modality] = "tts"
    load_options: ClassVar[type[LoadOptions]] = SpeechLoadOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = True
    shares_rng: ClassVar[bool] = True

    def __init__(self, name: str, folder: Path, device: Device, model: Any, processor: Any, *, offload: bool) -> None:
        self.name = name
        self.folder = folder
        self.device = device
        self.sample_rate = int(model.generation_config.sample_rate)
        self._model = model
        self._processor = processor
        self._parts = PartsInTurn(model, device, offload=offload)
        self._offload = offload

    # --- loading ----------------------------------------------------------------------------------------------

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """All four networks on the device, or only the largest at a time if they do not fit."""
        dtype, why = choose_dtype(device, "autoregressive", options.dtype)
        width = 4 if dtype == "float32" else 2
        whole = folder_weights_bytes(path, spec.variant, width, on_cuda=device.kind == "cuda")
        work = _work_bytes(path, device, width)
        offload = options.offload == "parts" or (
            options.offload == "auto" and device.pool != "ram" and whole + work > room_bytes
        )
        if not offload:
            return Footprint(whole, work, placement="device", reason=f"{dtype}: {why}.")
        return Footprint(
            _largest_part_bytes(path, spec.variant, width),
            work,
            host_bytes=whole if device.pool != "ram" else 0,
            placement="parts",
            reason=f"{dtype}: {why}; one part at a time on the device (all together do not fit, or asked for).",
        )

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Load all four networks; see `Engine.load`."""
        from transformers import AutoTokenizer, BarkModel, BarkProcessor

        what = f"The model {spec.id}"
        dtype, _ = choose_dtype(device, "autoregressive", options.dtype)
        model = _torch.load_pretrained(BarkModel, path, dtype, what)
        with _torch.foreign_errors(what, LoadError, "Remove the model and download it again."):
            model.generation_config = _plain_generation_config(model.generation_config)
            processor = BarkProcessor(tokenizer=AutoTokenizer.from_pretrained(str(path), local_files_only=True))
            offload = footprint.placement == "parts"
            if not offload:
                model.to(device.torch_name)
        return cls(spec.id, path, device, model, processor, offload=offload)

    @classmethod
    def voices(cls, spec: ModelSpec, path: Path | None) -> list[str]:
        """Names of the presets: those in the model's folder, or all that the published models have."""
        return _bark_voices.names(path)

    def close(self) -> None:
        """Drop the networks."""
        self._parts.release()
        self._model = self._processor = None

    def _on_device(self) -> tuple[Device, list[Any]]:
        return self.device, [] if self._offload else [self._model]

    # --- speaking ---------------------------------------------------------------------------------------------

    def speak(self, text: str, options: SpeechOptions, control: Control) -> Speech:
        """The whole text; see `SpeechModel`."""
        options = options.model_copy(update={"seed": _torch.resolve_seed(options.seed)})
        voice, _ = self._voice(options)
        return join_pieces(self.stream(text, options, control), voice or "random", options.seed)

    def stream(self, text: str, options: SpeechOptions, control: Control) -> Iterator[SpokenPiece]:
        """Piece by piece; see `SpeechModel`. Cancelled at the next step of any stage."""
        text = check_text(text)
        if options.speed != 1.0:
            raise UnsupportedRequest(
                "Bark cannot change the rate of speech.", hint="Leave speed at 1, or use a Piper voice."
            )
        voice, history = self._voice(options)
        seed = _torch.resolve_seed(options.seed)
        pieces = self._pieces(text, options, voice)
        return self._spoken(pieces, history, seed, options, control)

    def _spoken(
        self, pieces: list[Piece], history: Any, seed: int, options: SpeechOptions, control: Control
    ) -> Iterator[SpokenPiece]:
        for number, piece in enumerate(pieces):
            control.report(number, len(pieces), "piece", "speak")
            samples, codes = self._say(piece.text, history, (seed + number) % (_torch.MAX_SEED + 1), options, control)
            history = codes if history is None else history  # without a preset, the first piece lends its voice
            yield SpokenPiece(Audio(samples, self.sample_rate), piece.text, options.pause_s(piece.ends))
        control.report(len(pieces), len(pieces), "piece", "speak")

    def _say(self, text: str, history: Any, seed: int, options: SpeechOptions, control: Control) -> tuple[Any, Any]:
        """One piece: float32 [1, samples], and its codes as a voice for the next."""
        if self._model is None:
            raise GenerationError(f"The model {self.name} is closed.")
        with _torch.foreign_errors("Bark"), self._parts.reporting(control), _torch.seeded(seed, self.device):
            inputs = self._processor(text, voice_preset=history).to(self.device.torch_name)
            sound = self._model.generate(**inputs, **_sampling(options))
            samples = sound.float().cpu().numpy().reshape(1, -1)
            return samples, self._parts.codes()

    # --- options ----------------------------------------------------------------------------------------------

    def _voice(self, options: SpeechOptions) -> tuple[str, Any]:
        """Name and arrays of the voice; ("", None) for one that the first piece makes up."""
        language = base_language(options.language)
        if language and language not in LANGUAGES:
            raise UnsupportedRequest(
                f"Bark does not speak {options.language!r}.", hint=f"It speaks {', '.join(LANGUAGES)}."
            )
        return _bark_voices.choose(self.folder, options.voice, language)

    def _pieces(self, text: str, options: SpeechOptions, voice: str) -> list[Piece]:
        language = base_language(options.language) or _bark_voices.language_of(voice)
        size = MAX_CHARS_WIDE if language in WIDE else MAX_CHARS
        pieces = split_text(text, size, merge=True)
        while size > 20 and any(len(self._processor.tokenizer.tokenize(p.text)) > MAX_TOKENS for p in pieces):
            size //= 2
            pieces = split_text(text, size, merge=True)
        return pieces


def _sampling(options: SpeechOptions) -> dict[str, Any]:
    """Keyword arguments of `generate` for what the caller said; nothing for what they did not."""
    said: dict[str, Any] = {}
    if options.temperature >= 0:
        said.update(_temperature("semantic", options.temperature))
    if options.waveform_temperature >= 0:
        said.update(_temperature("coarse", options.waveform_temperature))
    if options.min_eos_p >= 0:
        said["min_eos_p"] = options.min_eos_p
    return said


def _temperature(stage: str, value: float) -> dict[str, Any]:
    return {f"{stage}_temperature": value} if value > 0 else {f"{stage}_do_sample": False}


def _plain_generation_config(config: Any) -> Any:
    """A configuration that `generate` accepts: a plain one whose stages are dictionaries.

    transformers 5 fails on its own BarkGenerationConfig ("must be a mapping"), and a folder may lack the file.
    """
    from transformers import GenerationConfig
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    stages = ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config")
    if isinstance(config, BarkGenerationConfig):
        return GenerationConfig.from_dict(config.to_dict())
    if all(isinstance(getattr(config, stage, None), dict) for stage in stages):
        return config
    return GenerationConfig.from_dict(BarkGenerationConfig().to_dict())


def _work_bytes(folder: Path, device: Device, width: int) -> int:
    """Caches and activations of the longest piece that the folder's settings allow."""
    said = read_config(folder, SETTINGS) if (folder / SETTINGS).is_file() else {}
    return work_bytes(device, *bark_work(read_config(folder), said, width))


def _largest_part_bytes(folder: Path, variant: str, width: int) -> int:
    sums = dict.fromkeys(PARTS, 0)
    for file in weight_files(folder, variant):
        for name, entry in read_safetensors(file).items():
            part = name.partition(".")[0]
            if part in sums:
                count = 1
                for n in entry.shape:
                    count *= n
                sums[part] += count * width if entry.dtype.startswith(("F", "BF")) else entry.nbytes
    return max(sums.values())
