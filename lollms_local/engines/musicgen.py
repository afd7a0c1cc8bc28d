"""Text to music with MusicGen (transformers): small to large, mono and stereo, with a melody or from a given beginning.

A model writes codes, 50 frames a second, up to 30 s at a time. Longer music is continued code by code: the next part is
given the last codes of the one before, and all codes are turned into sound together, so that there is no seam to hide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import Self

from ..catalog import ModelSpec
from ..devices import Device, choose_dtype
from ..errors import GenerationError, LoadError, UnsupportedRequest
from ..footprint import Footprint, folder_weights_bytes
from ..media import Audio, resample
from ..modalities.base import Control, LoadOptions, Modality
from ..modalities.music import Music, MusicLoadOptions, MusicOptions, MusicRequest
from . import _torch
from ._audio_footprint import musicgen_work, read_config, work_bytes
from ._music_windows import Window, chroma, cross_fade, plan_windows
from ._parking import ParksNetworks

__all__ = ["MusicgenMusic"]

#: seconds that the models were trained on
WINDOW_S = 30.0
#: seconds of codes turned into sound at once; memory grows with it
DECODE_S = 30.0
#: seconds decoded before a join, for the codec's memory, and cross-faded at it
DECODE_CONTEXT_S, FADE_S = 2.0, 0.05


class MusicgenMusic(ParksNetworks):
    """A loaded MusicGen. One caller at a time, in turn with every model that draws from torch's global generator."""

    modality: ClassVar[Modality] = "ttm"
    load_options: ClassVar[type[LoadOptions]] = MusicLoadOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = True
    shares_rng: ClassVar[bool] = True

    def __init__(self, name: str, device: Device, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.device = device
        self._model = model
        self._tokenizer = tokenizer
        codec, decoder = model.config.audio_encoder, model.config.decoder
        self.sample_rate = int(codec.sampling_rate)
        self.channels = int(decoder.audio_channels)
        self.follows_melody = hasattr(model.config, "num_chroma")
        self._hop = math.prod(codec.upsampling_ratios)
        self._frame_rate = self.sample_rate / self._hop
        self._delay = int(decoder.num_codebooks) // self.channels - 1

    # --- loading ----------------------------------------------------------------------------------------------

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        """Weights from the headers; the cache of a full window with guidance, from the config; the codec's work."""
        dtype, why = choose_dtype(device, "autoregressive", options.dtype)
        width = 4 if dtype == "float32" else 2
        weights = folder_weights_bytes(path, spec.variant, width, on_cuda=device.kind == "cuda")
        work = musicgen_work(read_config(path), DECODE_S + DECODE_CONTEXT_S, width)
        return Footprint(weights, work_bytes(device, *work), reason=f"{dtype}: {why}.")

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Self:
        """Load text encoder, decoder and codec; see `Engine.load`."""
        from transformers import AutoTokenizer, MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

        what = f"The model {spec.id}"
        dtype, _ = choose_dtype(device, "autoregressive", options.dtype)
        melody = read_config(path).get("model_type") == "musicgen_melody"
        family = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
        model = _torch.load_pretrained(family, path, dtype, what)
        with _torch.foreign_errors(what, LoadError, "Remove the model and download it again."):
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            model.to(device.torch_name)
        return cls(spec.id, device, model, tokenizer)

    def close(self) -> None:
        """Drop the networks."""
        self._model = self._tokenizer = None

    def _on_device(self) -> tuple[Device, list[Any]]:
        return self.device, [self._model]

    # --- composing --------------------------------------------------------------------------------------------

    def compose(self, request: MusicRequest, options: MusicOptions, control: Control) -> Music:
        """Make music; see `MusicModel`. Cancelled within one token, and between the layers of the codec."""
        prompts = [p.strip() for p in request.prompts if p.strip()]
        if not prompts:
            raise UnsupportedRequest(
                "There is no description of the music.", hint='Say what to play, e.g. "calm piano".'
            )
        if request.melody is not None and not self.follows_melody:
            raise UnsupportedRequest(
                f"The model {self.name} cannot follow a melody.", hint="Use musicgen-melody or musicgen-stereo-melody."
            )
        if self._model is None:
            raise GenerationError(f"The model {self.name} is closed.")
        seed = _torch.resolve_seed(options.seed)
        control.check()
        source = None if request.source is None else self._fitted(request.source)
        melody = None if request.melody is None else self._melody(request.melody)
        with _torch.foreign_errors("MusicGen"), self._inference(), control.behind_conversations() as control:
            codes = self._compose(prompts, melody, source, options, seed, control)
            samples = self._sound(codes, control)
        return Music(Audio(self._finished(samples, source, options), self.sample_rate), seed)

    def _compose(
        self, prompts: list[str], melody: Any, source: Any, options: MusicOptions, seed: int, control: Control
    ) -> Any:
        """Codes [books, frames]: as much of the given sound as the first part listens to, then the new music."""
        import torch

        total = max(1, math.ceil(options.duration * self._frame_rate - 1e-6))
        overlap, longest = round(options.overlap_s * self._frame_rate), round(WINDOW_S * self._frame_rate)
        codes = None if source is None else self._encoded(source, overlap)
        given = 0 if codes is None else codes.shape[1]
        for number, window in enumerate(plan_windows(total, len(prompts), given, overlap, longest)):
            context = codes[:, -window.context :] if codes is not None and window.context else None
            made = self._part(prompts[window.prompt], window, context, melody, options, (seed + number, total), control)
            codes = made if codes is None else torch.cat([codes, made[:, window.context :]], dim=1)
        return codes

    def _part(
        self,
        prompt: str,
        window: Window,
        context: Any,
        melody: Any,
        options: MusicOptions,
        seed_total: tuple[int, int],
        control: Control,
    ) -> Any:
        """One call of the model: codes [books, context + new]."""
        seed, total = seed_total
        inputs: dict[str, Any] = dict(self._tokenizer([prompt], padding=True, return_tensors="pt"))
        if context is not None:
            inputs["decoder_input_ids"] = context
        if melody is not None:
            inputs["input_features"] = self._melody_from(melody, window)
        inputs = {name: value.to(self.device.torch_name) for name, value in inputs.items()}
        made, before = 0, window.start

        def step() -> None:
            nonlocal made
            made += 1
            frames = before + min(made, window.new)
            control.report(round(frames / self._frame_rate, 2), round(total / self._frame_rate, 2), "s", "compose")

        with _torch.seeded(seed % (_torch.MAX_SEED + 1), self.device), self._codes_only() as codes:
            self._model.generate(
                **inputs,
                **_sampling(options),
                max_new_tokens=window.new + self._delay,
                stopping_criteria=_torch.stop_criterion(step),
            )
        return self._interleaved(codes)

    @contextmanager
    def _codes_only(self) -> Iterator[list[Any]]:
        """While the block runs, the codec keeps the codes it is given and makes no sound of them yet."""
        import torch

        codec, kept = self._model.audio_encoder, []

        def keep(codes: Any, *_: Any, **__: Any) -> Any:
            kept.append(codes[0, 0])
            return SimpleNamespace(audio_values=torch.zeros(1, 1, 1))

        codec.decode = keep
        try:
            yield kept
        finally:
            del codec.decode

    def _interleaved(self, kept: list[Any]) -> Any:
        """Codes [books, frames] of one channel, or of two with left and right books in turn, as the decoder wants."""
        import torch

        return kept[0] if len(kept) == 1 else torch.stack(kept, dim=1).flatten(0, 1)

    # --- codec ------------------------------------------------------------------------------------------------

    def _encoded(self, source: Any, overlap: int) -> Any:
        """Codes [books, frames] of the end of a given sound [channels, samples]."""
        import torch

        end = torch.from_numpy(source[:, -overlap * self._hop :].copy())
        end = end.to(self.device.torch_name, self._model.dtype)
        kept = [self._model.audio_encoder.encode(end[None, c : c + 1]).audio_codes[0, 0] for c in range(self.channels)]
        return self._interleaved(kept)

    def _sound(self, codes: Any, control: Control) -> Any:
        """float32 [channels, samples] of codes [books, frames]; long ones in parts that overlap."""
        size, context = round(DECODE_S * self._frame_rate), round(DECODE_CONTEXT_S * self._frame_rate)
        fade = round(FADE_S * self.sample_rate)
        step = _stage(control, "decode")
        leaves = [m for m in self._model.audio_encoder.decoder.modules() if not list(m.children())]
        samples = None
        with _torch.hooks(leaves, step):
            for start in range(0, codes.shape[1], size):
                before = min(start, context)
                part = self._decoded(codes[:, start - before : start + size])
                part = part[:, max(0, before * self._hop - fade) :]
                samples = part if samples is None else cross_fade(samples, part, fade)
        return samples

    def _decoded(self, codes: Any) -> Any:
        import numpy as np

        codec = self._model.audio_encoder
        parts = [
            codec.decode(codes[None, None, c :: self.channels], audio_scales=[None]).audio_values
            for c in range(self.channels)
        ]
        return np.concatenate([p[0].float().cpu().numpy() for p in parts], axis=0)

    def _finished(self, samples: Any, source: Any, options: MusicOptions) -> Any:
        """Exactly the length asked for, after the given sound where that is wanted."""
        new = round(options.duration * self.sample_rate)
        if source is None:
            return samples[:, :new]
        overlap = round(options.overlap_s * self._frame_rate) * self._hop
        heard = min(overlap, math.ceil(source.shape[1] / self._hop) * self._hop)
        heard = heard if source.shape[1] > overlap else source.shape[1]
        if not options.include_source:
            return samples[:, heard : heard + new]
        fade = min(round(FADE_S * self.sample_rate), heard)
        return cross_fade(source, samples[:, heard - fade : heard + new], fade)

    # --- inputs -----------------------------------------------------------------------------------------------

    def _fitted(self, audio: Audio) -> Any:
        """A given sound in the model's rate and channels: float32 [channels, samples]."""
        import numpy as np

        samples = resample(audio, self.sample_rate).samples
        if samples.shape[1] < self._hop:
            raise UnsupportedRequest("The sound to continue is too short.", hint="Give at least a second of it.")
        if self.channels == 1:
            return samples.mean(axis=0, keepdims=True)
        return np.repeat(samples, 2, axis=0) if samples.shape[0] == 1 else samples[:2]

    def _melody(self, audio: Audio) -> Any:
        return chroma(resample(audio.mono(), self.sample_rate).samples[0], self.sample_rate)

    def _melody_from(self, melody: Any, window: Window) -> Any:
        """Tones of the melody from the moment where a part begins, repeated as long as it takes: [1, frames, 12]."""
        import numpy as np
        import torch

        length = int(self._model.config.chroma_length)
        start = round((window.start - window.context) / self._frame_rate * length / WINDOW_S)
        looped = melody[np.arange(start, start + length) % len(melody)]
        return torch.from_numpy(looped[None]).to(self._model.dtype)

    @staticmethod
    def _inference() -> Any:
        import torch

        return torch.no_grad()


def _sampling(options: MusicOptions) -> dict[str, Any]:
    """Keyword arguments of `generate`. Guidance and sampling are always said: a folder may lack its own settings."""
    said: dict[str, Any] = {"do_sample": options.temperature != 0}
    said["guidance_scale"] = options.guidance_scale if options.guidance_scale > 0 else 3.0
    if options.temperature > 0:
        said["temperature"] = options.temperature
    if options.top_k >= 0:
        said["top_k"] = options.top_k
    if options.top_p > 0:
        said["top_p"] = options.top_p
    return said


def _stage(control: Control, stage: str) -> Callable[[], None]:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        control.report(count, 0, "step", stage)

    return step
