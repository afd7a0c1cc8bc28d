"""A tiny VITS with random weights, saved as the MMS voices are: under 1 MB."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["build_vits"]

LETTERS = "abcdefghijklmnopqrstuvwxyz' -"


def build_vits(folder: Path, *, speakers: int = 1, language: str = "eng", uroman: bool = False) -> Path:
    """Write model and tokenizer; returns the folder."""
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=len(LETTERS) + 2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32,
        flow_size=16, spectrogram_bins=17, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2, duration_predictor_num_flows=2, depth_separable_num_layers=2,
        duration_predictor_filter_channels=16, upsample_initial_channel=16, upsample_rates=[8, 8, 4],
        upsample_kernel_sizes=[16, 16, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        num_speakers=speakers, speaker_embedding_size=8 if speakers > 1 else 0,
        speaking_rate=0.25,
    )  # fmt: skip
    model = VitsModel(config).eval()
    for parameter in model.duration_predictor.parameters():
        parameter.data.mul_(0.1)  # a random one draws single sounds out for a minute; now they last about 6 frames each
    model.save_pretrained(folder)
    folder.joinpath("vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, **_numbered(LETTERS)}))
    VitsTokenizer(
        vocab_file=str(folder / "vocab.json"), language=language, phonemize=False, is_uroman=uroman
    ).save_pretrained(folder)
    return folder


def _numbered(letters: str) -> dict[str, int]:
    return {letter: number for number, letter in enumerate(letters, 2)}
