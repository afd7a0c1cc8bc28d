"""A tiny Bark with random weights, saved as the real one is: about 20 MB, because its vocabularies are fixed."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["build_bark"]

TOKENS = 24  # semantic tokens of every piece: about 0.5 s


def build_bark(
    folder: Path,
    presets: tuple[str, ...] = ("v2/en_speaker_6", "v2/en_speaker_3", "v2/de_speaker_1"),
    tokens: int = TOKENS,
) -> Path:
    """Write model, tokenizer and voice presets; returns the folder. A piece costs about 0.1 s for each of `tokens`."""
    import torch
    from transformers import BarkConfig, BarkModel, EncodecConfig, GenerationConfig
    from transformers.models.bark.configuration_bark import BarkCoarseConfig, BarkFineConfig, BarkSemanticConfig

    torch.manual_seed(0)
    size = {"num_layers": 1, "num_heads": 2, "hidden_size": 8, "block_size": 1024}
    codec = EncodecConfig(
        sampling_rate=24_000, num_filters=2, hidden_size=8, codebook_size=1024, codebook_dim=8, num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[6.0],
    )  # fmt: skip
    config = BarkConfig(
        semantic_config=BarkSemanticConfig(**size, input_vocab_size=129_600, output_vocab_size=10_048).to_dict(),
        coarse_acoustics_config=BarkCoarseConfig(**size, input_vocab_size=12_096, output_vocab_size=12_096).to_dict(),
        fine_acoustics_config=BarkFineConfig(**size, input_vocab_size=1_056, output_vocab_size=1_056).to_dict(),
        codec_config=codec.to_dict(),
    )
    model = BarkModel(config).eval()
    for layer in model.codec_model.quantizer.layers:
        layer.codebook.embed.normal_()  # a new Encodec's are zero: every code would sound the same
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(_generation_config(tokens)))
    _write_tokenizer(folder)
    _write_presets(folder, presets)
    return folder


def _generation_config(tokens: int) -> dict[str, object]:
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    config = BarkGenerationConfig().to_dict()
    config["semantic_config"].update(max_new_tokens=tokens, do_sample=True, temperature=0.7)
    config["coarse_acoustics_config"].update(do_sample=True, temperature=0.7)
    config["fine_acoustics_config"].update(temperature=0.5)
    return {k: v for k, v in config.items() if v is not None}


def _write_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"[]()-;:♪"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(vocabulary), vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)


def _write_presets(folder: Path, presets: tuple[str, ...]) -> None:
    import numpy as np

    index: dict[str, object] = {"repo_or_path": "somewhere/else"}
    (folder / "speaker_embeddings" / "v2").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in presets:
        shapes = {"semantic_prompt": (40,), "coarse_prompt": (2, 60), "fine_prompt": (8, 60)}
        rows = {}
        for key, shape in shapes.items():
            rows[key] = f"speaker_embeddings/{name}_{key}.npy"
            np.save(folder / rows[key], rng.integers(0, 1000, shape), allow_pickle=False)
        index[name] = rows
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(index))
