"""Speech to text with Whisper models in CTranslate2's format, through faster-whisper.

A recording is read in pieces of ten minutes, so that a ten-hour file costs no more memory than a short one; a piece
ends at the quietest moment near its end. A recording of one piece gives exactly what faster-whisper itself gives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, cpu_is_intel, cpu_threads
from ..errors import GenerationError, InsufficientMemory, LoadError, LocalModelError, UnsupportedRequest
from ..footprint import Footprint
from ..media import Audio, AudioSource, audio_duration_s
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.transcription import Segment, Transcript, TranscriptionLoadOptions, TranscriptionOptions, Word
from ._whisper_features import BlockFeatures
from ._whisper_folder import (
    GPU_BATCH,
    KEPT_BYTES,
    SOUND_BYTES,
    WhisperPlan,
    batch_that_fits,
    checked_files,
    choose_compute_type,
    decoding_bytes,
    language_code,
    loading_bytes,
    packed_bytes,
    usable_device,
)
from ._whisper_lines import lines_of
from ._whisper_pieces import recording_pieces

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

__all__ = ["FasterWhisperTranscriber"]

log = logging.getLogger(__name__)

#: shorter recordings are decoded one stretch after the other: there is nothing to put side by side
BATCH_FROM_S = 60.0
#: characters of the piece before that guide the next one
CARRIED_CHARS = 200
DEFAULT_BEAM_SIZE = 5


class FasterWhisperTranscriber:
    """A loaded Whisper model. Several callers may use it at a time: the weights are shared and hold no state."""

    modality: ClassVar[Modality] = "stt"
    load_options: ClassVar[type[LoadOptions]] = TranscriptionLoadOptions
    concurrency: ClassVar[int] = 0
    uses_torch: ClassVar[bool] = False
    shares_rng: ClassVar[bool] = False

    def __init__(self, name: str, model: WhisperModel, batch_size: int, parked_bytes: int = 0) -> None:
        self.name = name
        self.parked_bytes = parked_bytes
        self.batch_size = batch_size
        self.is_multilingual = bool(model.model.is_multilingual)
        self._model: WhisperModel | None = model

    # --- loading ----------------------------------------------------------------------------------------------

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """Weights by the file's table and the arithmetic; what a ten-minute piece and one batch need besides."""
        header = checked_files(path)
        usable, why = usable_device(device)
        compute_type, reason = choose_compute_type(usable, options.compute_type, options.dtype)
        quantised = compute_type.startswith("int8")
        weights = header.weights_bytes(2 if compute_type.endswith("float16") else 4, quantised=quantised)
        on_gpu = usable.kind == "cuda"
        if not on_gpu and cpu_is_intel():
            weights += packed_bytes(header, 4, quantised=quantised)
        wanted = options.max_batch_size or (GPU_BATCH if on_gpu else 1)
        kept = 0 if on_gpu else KEPT_BYTES
        batch = batch_that_fits(header, compute_type, wanted, room_bytes - weights - kept)
        decoding = decoding_bytes(header, compute_type, batch)
        plan = WhisperPlan(usable.kind, compute_type, batch)
        reason = f"{compute_type}: {reason}. Memory is kept for batches of {batch}.{' ' + why if why else ''}"
        if on_gpu:
            return Footprint(weights, decoding, SOUND_BYTES, plan, reason)
        workspace = max(SOUND_BYTES, kept + decoding, loading_bytes(header) - weights)
        if usable.pool != device.pool:
            return Footprint(0, 0, weights + workspace, plan, reason)
        return Footprint(weights, workspace, 0, plan, reason)

    @classmethod
    def smaller(cls, options: Any) -> Iterator[tuple[Any, str]]:
        """Weights in 8 bits; batches shrink by themselves."""
        if options.compute_type != "int8":
            yield options.model_copy(update={"compute_type": "int8", "dtype": "auto"}), "compute_type=int8"

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Load the folder; nothing is fetched, whatever is missing in it."""
        plan: WhisperPlan = footprint.placement
        with _whisper_errors(f"The model {spec.id}", LoadError):
            from faster_whisper import WhisperModel

            model = WhisperModel(
                str(path),
                device=plan.device,
                device_index=device.index if plan.device == "cuda" else 0,
                compute_type=plan.compute_type,
                cpu_threads=cpu_threads(),
                local_files_only=True,
            )
        model.feature_extractor = BlockFeatures(model.feature_extractor)
        return cls(spec.id, model, plan.batch_size, footprint.weights_bytes if plan.device == "cuda" else 0)

    def park(self) -> None:
        """Move the weights to RAM, as they are on the card; see `engines.Parkable`."""
        assert self._model is not None
        self._model.model.unload_model(to_cpu=True)

    def unpark(self) -> None:
        """Bring them back to the card, and free what they took of RAM."""
        assert self._model is not None
        with _whisper_errors(f"The model {self.name}", LoadError):
            self._model.model.load_model()

    def close(self) -> None:
        """Free the weights now, whoever still holds a reference."""
        model, self._model = self._model, None
        if model is not None:
            model.model.unload_model()

    # --- transcribing -----------------------------------------------------------------------------------------

    def transcribe(self, audio: AudioSource, options: TranscriptionOptions, control: Control) -> Transcript:
        """Write down what is said; see `Transcriber`."""
        model = self._model
        if model is None:
            raise GenerationError(f"The model {self.name} is closed.", hint="Lease it again.")
        settings = self._settings(options)
        total_s = audio_duration_s(audio)
        long = total_s >= BATCH_FROM_S
        with control.behind_conversations() if long else nullcontext(control) as control:
            return self._transcribed(model, audio, total_s, settings, options, control)

    def _transcribed(
        self, model: WhisperModel, audio: AudioSource, total_s: float, settings: dict[str, Any],
        options: TranscriptionOptions, control: Control,
    ) -> Transcript:  # fmt: skip
        said: list[str] = []
        segments: list[Segment] = []
        language, probability, offset_s = "", 0.0, 0.0
        for piece in recording_pieces(audio):
            control.check()
            if said and options.condition_on_previous_text:
                settings["initial_prompt"] = "".join(said)[-CARRIED_CHARS:]
            end_s = offset_s + piece.duration_s
            batch = self._batch_size(options, piece.duration_s)
            with _whisper_errors(f"The model {self.name}", GenerationError):
                found, info = self._start(model, piece, settings, batch)
            for segment in self._found(found):
                said.append(segment.text)
                lines = lines_of(segment, keep_words=options.word_timestamps) if batch > 1 else (segment,)
                segments.extend(_segment(line, offset_s, self.name) for line in lines)
                control.report(min(segments[-1].end_s, end_s), max(total_s, end_s), "s", "transcribe")
            if info.duration_after_vad > 0 and not language:
                language, probability = info.language, float(info.language_probability)
                settings["language"] = language  # later pieces are not guessed anew
            offset_s = end_s
            control.report(offset_s, max(total_s, offset_s), "s", "transcribe")
        return Transcript("".join(said).strip(), tuple(segments), language, probability, offset_s, self.name)

    @staticmethod
    def _start(model: WhisperModel, piece: Audio, settings: dict[str, Any], batch: int) -> tuple[Iterator[Any], Any]:
        """faster-whisper's lazy segments and its information, in batches where that pays."""
        if batch == 1:
            return model.transcribe(piece.samples[0], **settings)  # type: ignore[no-any-return]
        from faster_whisper import BatchedInferencePipeline

        # a batch has no step after which to try again: what only serves that is left out
        left_out = ("condition_on_previous_text", "vad_parameters", "word_timestamps")
        batched = {k: v for k, v in settings.items() if k not in left_out}
        vad = {k: v for k, v in settings["vad_parameters"].items() if k == "threshold"}
        return BatchedInferencePipeline(model).transcribe(  # type: ignore[no-any-return]
            piece.samples[0],
            batch_size=batch,
            # with the model's own time marks a batch lost one word in twenty (tiny.en): what follows an early mark.
            # Without them a line lasts up to 30 seconds; the words' times are there to cut it by.
            word_timestamps=True,
            vad_parameters={**vad, "min_silence_duration_ms": 160},
            **batched,
        )

    def _found(self, segments: Iterator[Any]) -> Iterator[Any]:
        """The segments as they are decoded; only what decoding raises is mapped, not what their reader raises."""
        while True:
            with _whisper_errors(f"The model {self.name}", GenerationError):
                segment = next(segments, None)
            if segment is None:
                return
            yield segment

    def _batch_size(self, options: TranscriptionOptions, duration_s: float) -> int:
        """1 = one stretch after the other. Batches need the speech detector, which finds what to put side by side."""
        if not options.vad_filter or duration_s < BATCH_FROM_S:
            return 1
        wanted = options.batch_size or self.batch_size
        if wanted > self.batch_size:
            log.info(
                "Batches of %d instead of %d: memory is kept for no more. Say max_batch_size when the model is loaded.",
                self.batch_size, wanted,
            )  # fmt: skip
        return min(wanted, self.batch_size)

    def _settings(self, options: TranscriptionOptions) -> dict[str, Any]:
        """faster-whisper's arguments; what is not said keeps the library's own default."""
        settings: dict[str, Any] = {
            "language": self._language(options),
            "task": options.task,
            "beam_size": options.beam_size or DEFAULT_BEAM_SIZE,
            "vad_filter": options.vad_filter,
            "vad_parameters": {"threshold": options.vad_threshold},
            "word_timestamps": options.word_timestamps,
            "condition_on_previous_text": options.condition_on_previous_text,
        }
        if options.temperature >= 0:
            settings["temperature"] = options.temperature
        if options.initial_prompt:
            settings["initial_prompt"] = options.initial_prompt
        if options.hotwords:
            settings["hotwords"] = options.hotwords
        return settings

    def _language(self, options: TranscriptionOptions) -> str | None:
        if not self.is_multilingual and options.task == "translate":
            raise UnsupportedRequest(
                f"The model {self.name} knows only English and cannot translate.", hint=_OTHER_MODELS
            )
        if options.language.strip().lower() in ("", "auto", "detect"):
            return None
        code = language_code(options.language)
        if not self.is_multilingual and code != "en":
            raise UnsupportedRequest(
                f"The model {self.name} knows only English, not {options.language!r}.", hint=_OTHER_MODELS
            )
        return code


_OTHER_MODELS = 'Choose a model without ".en" in its name: "lollms-local models list --modality stt" shows all.'


def _segment(found: Any, offset_s: float, name: str) -> Segment:
    """One of faster-whisper's segments, in the recording's own time."""
    if not math.isfinite(found.avg_logprob):
        raise GenerationError(
            f"The model {name} computes values that are not numbers; its file is damaged.",
            hint="Remove the model and download it again.",
        )
    words = tuple(
        Word(_time(w.start, offset_s), _time(w.end, offset_s), w.word.strip(), float(w.probability))
        for w in found.words or ()
    )
    return Segment(
        start_s=_time(found.start, offset_s),
        end_s=_time(found.end, offset_s),
        text=found.text.strip(),
        words=words,
        avg_logprob=float(found.avg_logprob),
        no_speech_prob=float(found.no_speech_prob),
        compression_ratio=float(found.compression_ratio),
        temperature=float(found.temperature or 0.0),
    )


def _time(seconds: Any, offset_s: float) -> float:
    return round(float(seconds) + offset_s, 3)


@contextmanager
def _whisper_errors(what: str, error: type[LocalModelError]) -> Iterator[None]:
    """Map what faster-whisper and ctranslate2 raise; the only place that does."""
    try:
        yield
    except (LocalModelError, TypeError, AttributeError):
        raise
    except MemoryError as exc:
        raise InsufficientMemory(
            f"{what} ran out of memory.", hint="Close other programs or choose a smaller model."
        ) from exc
    except Exception as exc:  # the library of tokenizers raises the bare class
        if type(exc) is not Exception and not isinstance(exc, (RuntimeError, ValueError, OSError, IndexError)):
            raise
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:300]
        if "out of memory" in reason.lower():
            raise InsufficientMemory(f"{what} ran out of memory: {reason}.", hint="Choose a smaller model.") from exc
        loading = issubclass(error, LoadError)
        raise error(
            f"{what} {'could not be loaded' if loading else 'failed'}: {reason}",
            hint="Remove the model and download it again." if loading else "",
        ) from exc
