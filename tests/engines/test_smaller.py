"""A model that does not fit as asked for: the hint names a form that fits; where the user allows it, that is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.engines import ENGINES, EngineRow
from lollms_local.engines._diffusers import smaller_forms
from lollms_local.errors import InsufficientMemory, ModelBusy
from lollms_local.footprint import Footprint
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest
from lollms_local.modalities.image import ImageLoadOptions
from lollms_local.modalities.transcription import TranscriptionLoadOptions
from lollms_local.modalities.video import VideoLoadOptions
from lollms_local.options import choice
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


class HungryOptions(LoadOptions):
    """How much of the work is done at once."""

    pieces: int = choice(4, "Pieces at once.", ge=1)


class Hungry:
    """Plans for less than it takes: with more than one piece at once memory runs out while it works."""

    modality: ClassVar[Modality] = "stt"
    load_options: ClassVar[type[LoadOptions]] = HungryOptions
    concurrency: ClassVar[int] = 1
    uses_torch: ClassVar[bool] = False
    shares_rng: ClassVar[bool] = False
    loads: ClassVar[list[int]] = []
    #: more pieces than that do not even load
    loadable: ClassVar[int] = 9

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.loads.append(pieces)

    @classmethod
    def footprint(cls, spec: ModelSpec, path: Path, device: Device, options: Any, room_bytes: int) -> Footprint:
        return Footprint(options.pieces << 20)

    @classmethod
    def smaller(cls, options: Any) -> Iterator[tuple[Any, str]]:
        for pieces in range(options.pieces - 1, 0, -1):
            yield options.model_copy(update={"pieces": pieces}), f"pieces={pieces}"

    @classmethod
    def load(cls, spec: ModelSpec, path: Path, device: Device, options: Any, footprint: Footprint) -> Hungry:
        if options.pieces > cls.loadable:
            cls.loads.append(-options.pieces)
            raise MemoryError(f"no room to load {options.pieces}")
        return cls(options.pieces)

    def work(self, enough_for: int) -> int:
        if self.pieces > enough_for:
            raise MemoryError(f"no room for {self.pieces} pieces")
        return self.pieces

    def close(self) -> None:
        pass


@pytest.fixture
def hungry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setitem(ENGINES, "hungry", EngineRow("tests.engines.test_smaller", "Hungry", "stt", "stt", (), ()))
    monkeypatch.setattr(Hungry, "loads", [])
    return ModelSpec(id="hungry", modality="stt", engine="hungry", source=f"path:{tmp_path}")


def test_where_the_user_allows_it_a_model_that_ran_out_of_memory_is_tried_once_in_a_smaller_form(
    tmp_path: Path, hungry: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = runtime(tmp_path, shrink=True)
    job = Job(hungry, HungryOptions(), tmp_path)
    assert allowed.call(job, lambda model: model.work(3)) == 3
    assert Hungry.loads == [4, 3]
    assert "hungry ran out of memory; it is loaded with pieces=3 for another try" in caplog.text
    allowed.manager.unload_idle()
    assert allowed.call(job, lambda model: model.work(3)) == 3, "the larger form is not tried in vain again"
    with pytest.raises(InsufficientMemory, match="ran out"):
        allowed.call(job, lambda model: model.work(1))
    assert Hungry.loads == [4, 3, 3, 2], "one step at a time, and once per call"
    assert allowed.unload(job)
    assert allowed.call(job, lambda model: model.work(4)) == 4, "an unload by name forgets it"
    allowed.manager.close()


def test_memory_that_runs_out_while_loading_is_an_occasion_too(
    tmp_path: Path, hungry: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hungry, "loadable", 3)
    allowed = runtime(tmp_path, shrink=True)
    job = Job(hungry, HungryOptions(), tmp_path)
    for _ in range(2):
        assert allowed.call(job, lambda model: model.work(4)) == 3
        assert Hungry.loads == [-4, -4, 3], "twice as asked for, then in the next smaller form"
        assert allowed.unload(job)
        Hungry.loads.clear()
    allowed.manager.close()


def test_an_unload_that_is_refused_forgets_nothing(tmp_path: Path, hungry: ModelSpec) -> None:
    allowed = runtime(tmp_path, shrink=True)
    job = Job(hungry, HungryOptions(), tmp_path)
    assert allowed.call(job, lambda model: model.work(3)) == 3
    with allowed.lease(job):
        assert not allowed.unload(job)
    allowed.manager.unload_idle()
    assert allowed.call(job, lambda model: model.work(3)) == 3
    assert Hungry.loads == [4, 3, 3]
    allowed.manager.close()


def test_where_it_is_not_allowed_or_there_is_no_smaller_form_the_receipt_comes_at_once(
    tmp_path: Path, hungry: ModelSpec
) -> None:
    for shrink, pieces in ((False, 4), (True, 1)):
        made = runtime(tmp_path, shrink=shrink)
        with pytest.raises(InsufficientMemory, match=r"ran out again: no room for . pieces"):
            made.call(Job(hungry, HungryOptions(pieces=pieces), tmp_path), lambda model: model.work(0))
        made.manager.close()
    assert Hungry.loads == [4, 1]


def test_one_that_somebody_else_uses_is_not_taken_away_for_a_smaller_form(tmp_path: Path, hungry: ModelSpec) -> None:
    allowed = runtime(tmp_path, shrink=True)
    job = Job(hungry, HungryOptions(), tmp_path)
    with allowed.lease(job), pytest.raises(InsufficientMemory):
        allowed.call(job, lambda model: model.work(1))
    assert Hungry.loads == [4]
    allowed.manager.close()


@pytest.mark.parametrize("options", [ImageLoadOptions(), VideoLoadOptions()])
def test_a_pipeline_goes_into_tiles_first_and_then_off_the_card(options: Any) -> None:
    forms = [(form.vae_tiling, form.placement, change) for form, change in smaller_forms(options)]
    assert forms == [
        ("on", "auto", "vae_tiling=on"),
        ("on", "model_offload", "vae_tiling=on and placement=model_offload"),
        ("on", "group_offload", "vae_tiling=on and placement=group_offload"),
    ]
    last = options.model_copy(update={"vae_tiling": "on", "placement": "group_offload"})
    assert list(smaller_forms(last)) == []
