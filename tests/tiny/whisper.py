"""A tiny CTranslate2 Whisper, built from a configuration: real files for the real library, in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH, HEADS, LAYERS, MELS, STATES, TEXT = 16, 2, 1, 80, 1500, 448
WORDS = 50257
LANGUAGES = 99


def vocabulary() -> list[str]:
    """Tokens in Whisper's own order: words, then specials, then a time for every 20 ms of 30 s."""
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    codes = list(_LANGUAGE_CODES)[:LANGUAGES]
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in codes)]
    specials += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    times = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
    # CTranslate2 knows a multilingual model by the empty token, the last of the words
    return [*(f"w{i}" for i in range(WORDS - 1)), "", *specials, "<|notimestamps|>", *times]


def build_tiny_whisper(folder: Path, seed: int = 0) -> Path:
    """Write the model into `folder` (about 4 MB) and return it."""
    import numpy as np
    from ctranslate2.specs import WhisperSpec

    rng = np.random.default_rng(seed)
    tokens = vocabulary()
    spec = WhisperSpec(LAYERS, HEADS, LAYERS, HEADS)
    _fill(spec, rng, len(tokens))
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], [WORDS]
    spec.config.alignment_heads = [[0, 0], [0, 1]]
    spec.config.lang_ids = list(range(WORDS + 2, WORDS + 2 + LANGUAGES))
    spec.validate()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(tokens)), encoding="utf-8")
    return folder


def _tokenizer(tokens: list[str]) -> dict[str, Any]:
    import tokenizers

    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="w0")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in tokens[WORDS:]])
    return json.loads(made.to_str())  # type: ignore[no-any-return]


def _fill(spec: Any, rng: Any, words: int) -> None:
    import numpy as np

    def matrix(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def linear(layer: Any, rows: int, columns: int = WIDTH) -> None:
        layer.weight, layer.bias = matrix(rows, columns), np.zeros(rows, np.float32)

    def attention(layer: Any, *, itself: bool) -> None:
        norm(layer.layer_norm)
        for part, times in zip(layer.linear, (3, 1) if itself else (1, 2, 1), strict=True):
            linear(part, times * WIDTH)

    def feed_forward(layer: Any) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, 4 * WIDTH)
        linear(layer.linear_1, WIDTH, 4 * WIDTH)

    spec.encoder.conv1.weight, spec.encoder.conv1.bias = matrix(WIDTH, MELS, 3), matrix(WIDTH)
    spec.encoder.conv2.weight, spec.encoder.conv2.bias = matrix(WIDTH, WIDTH, 3), matrix(WIDTH)
    spec.encoder.position_encodings.encodings = matrix(STATES, WIDTH)
    spec.decoder.position_encodings.encodings = matrix(TEXT, WIDTH)
    norm(spec.encoder.layer_norm)
    norm(spec.decoder.layer_norm)
    for layer in spec.encoder.layer:
        attention(layer.self_attention, itself=True)
        feed_forward(layer.ffn)
    for layer in spec.decoder.layer:
        attention(layer.self_attention, itself=True)
        attention(layer.attention, itself=False)
        feed_forward(layer.ffn)
    spec.decoder.embeddings.weight = matrix(words, WIDTH)
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    spec.decoder.scale_embeddings = False
