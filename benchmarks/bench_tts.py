"""Speech: what the binding costs over the plain library, how soon the first sound comes, and memory over cycles.

    python benchmarks/bench_tts.py                  ratio of time, binding / plain library (goal: at most 1.02)
    python benchmarks/bench_tts.py --first          time to the first sentence of a 300-word text / time of the whole
    python benchmarks/bench_tts.py --soak 50        resident memory after each of 50 load, speak, unload cycles

Piper is the real starter voice (LOLLMS_LOCAL_MODELS_DIR); Bark and VITS have random weights and are built on the spot.
Run it on a calm machine. Both sides take turns, so that what disturbs one disturbs the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import in_turn, over_cycles

PIPER = "piper-en-us-joe-medium"
LINE = "A heron stood in the grey water and waited for the dawn, and for a fish that was slower than the others."


# --- models -----------------------------------------------------------------------------------------------------------


def middle_bark(
    folder: Path, *, tokens: int = 40, layers: int = 4, hidden: int = 256, heads: int = 4, filters: int = 8
) -> Path:
    """A Bark of 60 million parameters that says 40 semantic tokens, about 0.8 s."""
    from transformers import BarkConfig, BarkModel, EncodecConfig, GenerationConfig
    from transformers.models.bark.configuration_bark import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig

    from tests.tiny import bark

    size = {"num_layers": layers, "num_heads": heads, "hidden_size": hidden, "block_size": 1024}
    codec = EncodecConfig(
        sampling_rate=24_000, num_filters=filters, hidden_size=4 * filters, codebook_size=1024,
        codebook_dim=4 * filters, num_lstm_layers=1, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[6.0],
    )  # fmt: skip
    model = BarkModel(
        BarkConfig(
            semantic_config=BarkSemanticConfig(**size, input_vocab_size=129_600, output_vocab_size=10_048).to_dict(),
            coarse_acoustics_config=BarkCoarseConfig(
                **size, input_vocab_size=12_096, output_vocab_size=12_096
            ).to_dict(),
            fine_acoustics_config=BarkFineConfig(**size, input_vocab_size=1_056, output_vocab_size=1_056).to_dict(),
            codec_config=codec.to_dict(),
        )
    )
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    settings = bark._generation_config(tokens)
    for stage in ("semantic_config", "coarse_acoustics_config"):
        settings[stage]["use_cache"] = True
    (folder / "generation_config.json").write_text(json.dumps(settings))
    bark._write_tokenizer(folder)
    bark._write_presets(folder, ("v2/en_speaker_6",))
    return folder


def full_vits(folder: Path, **widths: int) -> Path:
    """A VITS of the published size, 36 million parameters."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    from tests.tiny import vits

    model = VitsModel(VitsConfig(vocab_size=len(vits.LETTERS) + 2, **widths))
    for parameter in model.duration_predictor.parameters():
        parameter.data.mul_(0.1)  # so that sounds last about as long as they would
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<unk>": 1, **{letter: n for n, letter in enumerate(vits.LETTERS, 2)}}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    VitsTokenizer(vocab_file=str(folder / "vocab.json"), language="eng", phonemize=False).save_pretrained(folder)
    return folder


def plain_piper(path: Path) -> Callable[[], Any]:
    from piper import PiperVoice

    voice = PiperVoice.load(next(path.glob("*.onnx")))
    return lambda: [chunk.audio_float_array for chunk in voice.synthesize(LINE)]


def plain_bark(folder: Path) -> Callable[[], Any]:
    import torch
    from transformers import AutoProcessor, BarkModel

    model = BarkModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(LINE, voice_preset="v2/en_speaker_6")

    def speak() -> Any:
        torch.manual_seed(1)
        return model.generate(**inputs).numpy()

    return speak


def plain_vits(folder: Path) -> Callable[[], Any]:
    import torch
    from transformers import AutoTokenizer, VitsModel

    model = VitsModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def speak() -> Any:
        torch.manual_seed(1)
        with torch.no_grad():
            return model(**tokenizer(LINE, return_tensors="pt")).waveform.numpy()

    return speak


# --- measurements -----------------------------------------------------------------------------------------------------


def client(model: str) -> Any:
    from lollms_local.client import connect

    return connect(speech=model, llm_binding_name="")


def measure_overhead(kinds: list[str], rounds: int, place: Path) -> dict[str, Any]:
    from lollms_local import weights

    found = {}
    for kind in kinds:
        if kind == "piper":
            model, path = PIPER, weights.models_dir() / PIPER
            plain = plain_piper(path)
        else:
            path = (middle_bark if kind == "bark" else full_vits)(place / kind)
            model, plain = str(path), (plain_bark if kind == "bark" else plain_vits)(path)
        speak = client(model).generate_audio
        seed = {} if kind == "piper" else {"seed": 1}
        found[kind] = in_turn(plain, lambda speak=speak, seed=seed: speak(LINE, **seed), rounds)
    return found


def first_sound(rounds: int) -> dict[str, Any]:
    """Share of the whole time after which the first sentence of 300 words can be heard."""
    sentence = "The old lighthouse on the northern cliff had not been lit for many years, and few remembered it. "
    text = (sentence * 20)[: len(sentence) * 17].strip()
    speak = client(PIPER).tts
    speak.generate_audio("Warm up.")
    shares = []
    for _ in range(rounds):
        start = time.perf_counter()
        stream = speak.stream_audio(text)
        next(stream)
        first = time.perf_counter() - start
        for _ in stream:
            pass
        shares.append((first, time.perf_counter() - start))
    return {
        "words": len(text.split()),
        "first_s": round(statistics.median(f for f, _ in shares), 3),
        "whole_s": round(statistics.median(w for _, w in shares), 3),
        "share": round(statistics.median(f / w for f, w in shares), 4),
    }


def soak(model: str, cycles: int) -> dict[str, Any]:
    """Resident MB after each load, speak, unload cycle through the host, and the slope after the tenth."""
    binding = client(model).tts

    def cycle() -> None:
        binding.generate_audio("Hello there.", seed=1)
        assert binding.unload_model()

    return over_cycles(cycle, cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="piper,bark,vits")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--soak", type=int, default=0)
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    with tempfile.TemporaryDirectory() as place:
        if given.first:
            found: Any = first_sound(given.rounds)
        elif given.soak:
            from tests.tiny.bark import build_bark
            from tests.tiny.vits import build_vits

            builders = {"bark": lambda f: build_bark(f, tokens=6), "vits": build_vits}
            models = {k: PIPER if k == "piper" else str(builders[k](Path(place) / k)) for k in kinds}
            found = {kind: soak(model, given.soak) for kind, model in models.items()}
        else:
            found = measure_overhead(kinds, given.rounds, Path(place))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
