"""The examples of the documents run as they stand."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lollms_local.runtime import Runtime, Settings, set_runtime

TOP = Path(__file__).parents[2]


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", TOP / "docs" / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spoken(runtime: Runtime, tmp_path: Path) -> Path:
    """A question, spoken by the starter voice, written by the podcast example."""
    (tmp_path / "question.txt").write_text("What is the capital of France?")
    example("podcast").main(str(tmp_path / "question.txt"), str(tmp_path / "question.wav"))
    return tmp_path / "question.wav"


def test_voice_assistant_hears_the_question_and_speaks_an_answer(spoken: Path, tmp_path: Path) -> None:
    from lollms_local.media import decode_audio

    heard = example("voice_assistant").main(str(spoken), str(tmp_path / "answer.wav"))
    assert "capital of france" in heard.lower()
    assert decode_audio(tmp_path / "answer.wav").duration_s > 0.3


def test_subtitles_of_a_video_carry_its_words(spoken: Path, tmp_path: Path) -> None:
    import numpy as np

    from lollms_local.media import decode_audio, encode_video

    frames = np.zeros((30, 64, 64, 3), np.uint8)
    (tmp_path / "talk.mp4").write_bytes(encode_video(frames, 10, audio=decode_audio(spoken)))
    text = example("subtitle_video").main(str(tmp_path / "talk.mp4")).read_text()
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n", text)
    assert "capital of france" in text.lower()


def test_semantic_search_ranks_the_same_sentence_first(runtime: Runtime) -> None:
    ranked = example("semantic_search").main("The heron stands in shallow water.")
    assert ranked[0][1] == "The heron stands in shallow water."
    assert ranked[0][0] == pytest.approx(1.0, abs=0.01)


def test_illustrated_story_writes_pictures_and_text(runtime: Runtime, tmp_path: Path) -> None:
    from PIL import Image

    from tests.tiny import diffusion

    model = diffusion.save(diffusion.stable_diffusion(), tmp_path / "tiny-sd")
    page = example("illustrated_story").main("a lighthouse", str(tmp_path / "story"), str(model), parts=1, size=64)
    assert Image.open(tmp_path / "story" / "1.png").size == (64, 64)
    assert '<img src="1.png">' in page.read_text()


def test_the_worked_engine_of_the_documents_transcribes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_dir: Path
) -> None:
    import numpy as np

    from lollms_local.client import connect
    from lollms_local.engines import ENGINES
    from lollms_local.media import Audio, encode_audio

    text = (TOP / "docs" / "writing-an-engine.md").read_text(encoding="utf-8")
    engine, row = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "my_engines").mkdir()
    (tmp_path / "my_engines" / "echo_engine.py").write_text(engine)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "phrase.txt").write_text("I heard")
    catalogue = re.findall(r"```yaml\n(.*?)```", text, re.S)[0]
    (models / "models.yaml").write_text(catalogue.replace("/folder/with/phrase.txt", str(tmp_path)))
    runtime = Runtime(Settings(models_dir=str(models)))
    before = set_runtime(runtime)
    try:
        exec(compile(row, "writing-an-engine.md", "exec"), {})
        client = connect(transcription=True)
        sound = encode_audio(Audio(np.zeros((1, 24000), np.float32), 16000))
        assert client.stt.transcribe_audio(sound, model="echo") == "I heard 1.5 seconds"
    finally:
        ENGINES.pop("echo", None)
        set_runtime(before)
        runtime.manager.close()
        sys.modules.pop("my_engines.echo_engine", None)
