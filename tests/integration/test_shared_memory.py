"""Six modalities, one memory: what the host's cooperative mode, small budgets and several clients ask of it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lollms_client import LollmsClient

from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny import diffusion

MIB = 1 << 20


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffusion.save(diffusion.stable_diffusion(), tmp_path_factory.mktemp("tiny") / "sd")


def client(picture_model: Path, **more: Any) -> Any:
    return LollmsClient(
        llm_binding_name="local_llm",
        llm_binding_config={"model_name": "smollm2-135m-instruct", "ctx_size": 2048},
        tti_binding_name="local_tti",
        tti_binding_config={"model_name": str(picture_model), "steps": 1},
        stt_binding_name="local_stt",
        tts_binding_name="local_tts",
        debug=False,
        **more,
    )


def size_of(png: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(png)).size


def test_cooperative_unloading_text_image_text_image_structured_and_speech(
    runtime: Runtime, picture_model: Path
) -> None:
    host = client(picture_model, cooperative_vram_management=True)
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    for _ in range(2):
        assert host.generate_text("Say hello.", n_predict=8, temperature=0).strip()
        assert [row.label for row in runtime.manager.snapshot() if "smollm2" in row.label]
        assert size_of(host.generate_image("a heron", width=64, height=64)) == (64, 64)
        assert not [row.label for row in runtime.manager.snapshot() if row.label == "smollm2-135m-instruct"]
    answer = host.generate_structured_content("Is water wet?", schema=schema)
    assert isinstance(answer["yes"], bool)
    # what chat tags and tools do: the binding itself, behind the client's back, right after it was unloaded
    assert host.tti.unload_model() is True
    assert size_of(host.tti.generate_image("a heron", width=None, height=None))[0] >= 8
    sound = host.generate_audio("The quick brown fox jumps over the lazy dog.")
    assert "fox" in host.transcribe_audio(sound).lower()


@pytest.fixture
def tight(models_dir: Path) -> Iterator[Runtime]:
    """A budget that holds any one of the starter models, and not all of them."""
    runtime = Runtime(Settings(models_dir=str(models_dir), ram_budget_gb=0.6))
    before = set_runtime(runtime)
    yield runtime
    set_runtime(before)
    runtime.manager.close()


def test_a_budget_below_the_sum_serves_everything_in_turn_and_is_never_exceeded(
    tight: Runtime, picture_model: Path
) -> None:
    host = client(picture_model)
    budget, held, seen = int(0.6 * (1 << 30)), [], set()

    def look() -> None:
        rows = tight.manager.snapshot()
        held.append(sum(sum(row.claims.values()) for row in rows))
        seen.update(row.label for row in rows)

    for round_ in range(2):
        sound = host.generate_audio("The quick brown fox jumps over the lazy dog.")
        look()
        assert host.generate_text("Say hello.", n_predict=8, temperature=0).strip()
        look()
        assert "fox" in host.transcribe_audio(sound).lower()
        look()
        assert size_of(host.generate_image("a heron", width=64, height=64, seed=round_)) == (64, 64)
        look()
    assert max(held) <= budget
    assert {"piper-en-us-joe-medium", "smollm2-135m-instruct", "whisper-tiny.en"} <= seen
    assert tight.manager.explain(), "something must have been evicted: the models' sum is over the budget"


def test_two_clients_share_one_copy_and_unloading_in_one_does_not_break_the_other(
    runtime: Runtime, picture_model: Path
) -> None:
    first, second = client(picture_model), client(picture_model)
    alone = first.generate_text("Tell me about the sea.", n_predict=40, temperature=0)
    started, answers = threading.Event(), []

    def stream(piece: str, kind: Any) -> bool:
        started.set()
        return True

    def work() -> None:
        answers.append(
            first.generate_text(
                "Tell me about the sea.", n_predict=40, temperature=0, stream=True, streaming_callback=stream
            )
        )

    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(60)
    second.llm.unload_model()
    worker.join(60)
    assert answers == [alone]
    assert second.generate_text("Tell me about the sea.", n_predict=40, temperature=0) == alone
    assert len([row for row in runtime.manager.snapshot() if row.label == "smollm2-135m-instruct"]) <= 1
