"""Tiny MusicGens with random weights (mono, stereo, melody), saved as the real ones are: under 1 MB each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

__all__ = ["build_musicgen"]

BOOKS = 4


def build_musicgen(folder: Path, kind: Literal["mono", "stereo", "melody"] = "mono") -> Path:
    """Write model and tokenizer; returns the folder."""
    import torch
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenForConditionalGeneration,
        MusicgenMelodyConfig,
        MusicgenMelodyForConditionalGeneration,
        T5Config,
    )

    torch.manual_seed(0)
    words = 64
    channels = 2 if kind == "stereo" else 1
    # the codec's bandwidth must give exactly BOOKS quantisers: 50 frames/s * log2(codebook size) bits * books
    codec = EncodecConfig(
        sampling_rate=32_000, num_filters=2, hidden_size=8, codebook_size=64, codebook_dim=8, num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[50 * 6 * BOOKS / 1000], use_causal_conv=False,
    )  # fmt: skip
    text = T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    decoder = {
        "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
        "num_codebooks": BOOKS * channels, "audio_channels": channels, "pad_token_id": 64, "bos_token_id": 64,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder}
    if kind == "melody":
        model = MusicgenMelodyForConditionalGeneration(MusicgenMelodyConfig(**parts, num_chroma=12, chroma_length=235))
    else:
        model = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()  # a new Encodec's are zero: every code would sound the same
    last = model.audio_encoder.encoder.layers[-1].conv
    with torch.no_grad():  # a new encoder's output hardly moves: every sound would have the same codes
        last.parametrizations.weight.original0.mul_(500)
        last.bias -= model.audio_encoder.encoder(torch.rand(1, 1, 32_000) * 2 - 1)[0].mean(-1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("audio_encoder"):
            torch.nn.init.normal_(parameter, std=0.2)  # so that text and melody make a difference
    model.eval().save_pretrained(folder)
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_length": 1500, "pad_token_id": 64, "bos_token_id": 64,
                "decoder_start_token_id": 64}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))
    _write_tokenizer(folder, words)
    return folder


def _write_tokenizer(folder: Path, words: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'- "
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *letters])}
    assert len(vocabulary) <= words
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
