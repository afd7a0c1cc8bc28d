"""Music: what the binding costs over the plain library, and memory over cycles.

    python benchmarks/bench_ttm.py             ratio of time, binding / plain library (goal: at most 1.02)
    python benchmarks/bench_ttm.py --soak 50   resident memory after each of 50 load, play, unload cycles

Weights are random and built on the spot. Run it on a calm machine; both sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side_by_side import in_turn, over_cycles

PROMPT = "a calm waltz for piano"


def middle_musicgen(folder: Path, filters: int = 16, *, shortcut: bool = True) -> Path:
    """A MusicGen with a decoder of 40 million parameters and a codec of a quarter of the published width.

    The published codec has 64 filters and no convolution beside its residual blocks.
    """
    import torch
    from transformers import EncodecConfig, MusicgenConfig, MusicgenForConditionalGeneration, T5Config

    from tests.tiny import musicgen

    torch.manual_seed(0)
    codec = EncodecConfig(
        sampling_rate=32_000, num_filters=filters, hidden_size=2 * filters, codebook_size=2048,
        codebook_dim=2 * filters, num_lstm_layers=1, upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[50 * 11 * 4 / 1000], use_causal_conv=False, use_conv_shortcut=shortcut,
    )  # fmt: skip
    text = T5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    decoder = {
        "vocab_size": 2048, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "ffn_dim": 2048,
        "num_codebooks": 4, "audio_channels": 1, "pad_token_id": 2048, "bos_token_id": 2048,
    }  # fmt: skip
    parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder}
    model = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()
    model.eval().save_pretrained(folder)
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_length": 1500, "pad_token_id": 2048,
                "bos_token_id": 2048, "decoder_start_token_id": 2048}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    musicgen._write_tokenizer(folder, 64)
    return folder


def plain_library(folder: Path, seconds: float) -> Callable[[], Any]:
    import torch
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def play() -> Any:
        torch.manual_seed(1)
        inputs = tokenizer([PROMPT], padding=True, return_tensors="pt")
        return model.generate(**inputs, max_new_tokens=round(50 * seconds) + 3).numpy()

    return play


def client(model: str) -> Any:
    from lollms_local.client import connect

    return connect(music=model, llm_binding_name="")


def overhead(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds of both in turn."""
    plain, host = plain_library(folder, seconds), client(str(folder))

    def ours() -> Any:
        return host.generate_music(PROMPT, duration=seconds, seed=1)

    return in_turn(plain, ours, rounds)


def soak(folder: Path, cycles: int) -> dict[str, Any]:
    """Resident MB after each load, play, unload cycle through the host, and the slope after the tenth."""
    binding = client(str(folder)).ttm

    def cycle() -> None:
        binding.generate_music(PROMPT, duration=0.3, seed=1)
        assert binding.unload_model()

    return over_cycles(cycle, cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--soak", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = middle_musicgen(Path(place) / "middle")
        found = soak(folder, given.soak) if given.soak else overhead(folder, given.seconds, given.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
