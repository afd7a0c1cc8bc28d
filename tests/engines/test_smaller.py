"""A model that does not fit as asked for: the hint names a form that fits; where the user allows it, that is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lollms_local.errors import InsufficientMemory, ModelBusy
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest
from lollms_local.modalities.transcription import TranscriptionLoadOptions
from lollms_local.runtime import Job, Runtime, Settings


def runtime(models_dir: Path, **settings: object) -> Runtime:
    return Runtime(Settings(models_dir=str(models_dir), **settings))


@pytest.fixture
def tight(models_dir: Path) -> Iterator[Runtime]:
    """SmolLM2-135M needs 0.31 GiB with a context of 8192 tokens, and 0.22 with one of 4096."""
    made = runtime(models_dir, ram_budget_gb=0.25)
    yield made
    made.manager.close()


def _context(model: Any) -> int:
    return int(model.info.context_tokens)


def chat(runtime: Runtime, ctx_size: int) -> Job:
    spec = runtime.resolve("smollm2-135m-instruct", "llm")
    return Job(spec, ChatLoadOptions(ctx_size=ctx_size), runtime.models_dir)


def test_the_hint_names_the_longest_context_that_fits_and_it_does(tight: Runtime) -> None:
    with pytest.raises(InsufficientMemory) as refused, tight.lease(chat(tight, 8192)):
        pass
    found = re.fullmatch(r"With ctx_size=(\d+) it fits\.", refused.value.hint)
    assert found and int(found[1]) == 4096
    assert not tight.manager.snapshot()
    with tight.lease(chat(tight, int(found[1]))) as model:
        assert model.info.context_tokens == 4096


def test_where_the_user_allows_it_the_smaller_form_is_loaded_and_said(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = runtime(models_dir, ram_budget_gb=0.25, shrink=True)
    try:
        job = chat(allowed, 8192)
        answer = allowed.call(
            job, lambda m: m.generate(ChatRequest(prompt="Hi"), ChatOptions(n_predict=4), Control(), lambda p: True)
        )
        assert answer.completion_tokens == 4 and allowed.is_loaded(job)
        with allowed.lease(job) as model:
            assert model.info.context_tokens == 4096
        assert "does not fit as asked for; loaded with ctx_size=4096 instead" in caplog.text
        (row,) = allowed.manager.snapshot()
        assert row.charged["ram"] <= 0.25 * (1 << 30)
    finally:
        allowed.manager.close()


def test_a_model_that_only_has_to_wait_for_others_is_not_made_smaller(models_dir: Path) -> None:
    allowed = runtime(models_dir, ram_budget_gb=0.55, shrink=True, wait_s=0)
    listen = Job(allowed.resolve("whisper-tiny.en", "stt"), TranscriptionLoadOptions(), allowed.models_dir)
    try:
        with ThreadPoolExecutor(1) as other:
            with allowed.lease(listen), pytest.raises(ModelBusy):
                other.submit(allowed.call, chat(allowed, 8192), _context).result()
            with allowed.lease(listen):
                assert other.submit(allowed.call, chat(allowed, 2048), _context).result() == 2048, "that would have fit"
            assert allowed.call(chat(allowed, 8192), _context) == 8192
    finally:
        allowed.manager.close()


def test_what_is_small_already_or_does_not_fit_at_all_keeps_the_usual_hint(models_dir: Path) -> None:
    tiny = runtime(models_dir, ram_budget_gb=0.05, shrink=True)
    listen = Job(tiny.resolve("whisper-tiny.en", "stt"), TranscriptionLoadOptions(compute_type="int8"), tiny.models_dir)
    for job in (chat(tiny, 8192), listen):
        with pytest.raises(InsufficientMemory) as refused, tiny.lease(job):
            pass
        assert "can be had now" in refused.value.hint
    tiny.manager.close()
