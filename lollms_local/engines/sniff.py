"""What a file or folder on disk is: which modality, which engine. Only names and small JSON files are looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..modalities.base import Modality

__all__ = ["default_engine", "sniff"]

_DEFAULT: dict[Modality, str] = {
    "llm": "llama_cpp",
    "tti": "diffusers_image",
    "stt": "faster_whisper",
    "tts": "bark",
    "ttv": "diffusers_video",
    "ttm": "musicgen",
}
#: words in the names of repositories
_BY_NAME: dict[tuple[Modality, str], str] = {
    ("tts", "mms-tts"): "vits",
    ("tts", "vits"): "vits",
    ("tts", "piper"): "piper",
}
_MODEL_TYPES: dict[str, tuple[Modality, str]] = {
    "bark": ("tts", "bark"),
    "vits": ("tts", "vits"),
    "musicgen": ("ttm", "musicgen"),
    "musicgen_melody": ("ttm", "musicgen"),
}
_VIDEO_WORDS = ("video", "wan", "ltx", "animatediff", "mochi", "allegro")


def default_engine(modality: Modality, name: str = "") -> str:
    """The engine for a repository of which only the modality and the name are known."""
    words = name.lower()
    return next((e for (m, word), e in _BY_NAME.items() if m == modality and word in words), _DEFAULT[modality])


def sniff(path: Path) -> tuple[Modality, str] | None:
    """Modality and engine of a model on disk, or None if it is nothing we know."""
    if path.is_file():
        return _sniff_file(path)
    if not path.is_dir():
        return None
    pipeline = _json(path / "model_index.json").get("_class_name")
    if pipeline:
        words = str(pipeline).lower()
        return ("ttv", "diffusers_video") if any(w in words for w in _VIDEO_WORDS) else ("tti", "diffusers_image")
    config = _json(path / "config.json")
    if config.get("_class_name") == "MotionAdapter":
        return "ttv", "diffusers_video"
    known = _MODEL_TYPES.get(str(config.get("model_type", "")))
    if known:
        return known
    if (path / "model.bin").is_file():
        return "stt", "faster_whisper"
    found = (_sniff_file(p) for p in sorted(path.iterdir()) if p.is_file())
    return next((f for f in found if f is not None), None)


def _sniff_file(path: Path) -> tuple[Modality, str] | None:
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return "llm", "llama_cpp"
    if suffix == ".onnx" and path.with_name(path.name + ".json").is_file():
        return "tts", "piper"
    if suffix == ".safetensors":
        return "tti", "diffusers_image"
    return None


def _json(path: Path) -> dict[str, Any]:
    """A small JSON object, or nothing: whether a damaged one matters is the engine's to say."""
    try:
        if path.stat().st_size > 1 << 20:
            return {}
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
