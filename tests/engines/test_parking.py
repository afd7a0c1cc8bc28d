"""Weights that can wait in RAM: that it is all an engine holds, that the bytes are right, and that nothing changes.

The card is a stand-in that keeps its tensors in RAM too: what is moved is right, how fast it moves is not shown here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.engines import engine_class
from lollms_local.modalities.base import Control, LoadOptions
from lollms_local.modalities.image import ImageLoadOptions, ImageOptions
from lollms_local.modalities.music import MusicLoadOptions, MusicOptions, MusicRequest
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions
from lollms_local.modalities.video import VideoLoadOptions, VideoOptions
from tests.tiny import diffusion, video
from tests.tiny.bark import build_bark
from tests.tiny.musicgen import build_musicgen
from tests.tiny.vits import build_vits


class StandIn(Device):
    """The CPU, but with a memory of its own."""

    @property
    def pool(self) -> str:
        return "card"


CARD, CPU = StandIn("cpu"), Device("cpu")

Work = Callable[[Any], Any]
Build = Callable[[Path], Path]

CASES: dict[str, tuple[Any, Build, LoadOptions, Work]] = {
    "bark": (
        "tts", build_bark, SpeechLoadOptions(dtype="float32"),
        lambda m: m.speak("A heron.", SpeechOptions(seed=3), Control()).audio.samples,
    ),
    "vits": (
        "tts", build_vits, SpeechLoadOptions(),
        lambda m: m.speak("a heron", SpeechOptions(seed=3), Control()).audio.samples,
    ),
    "musicgen": (
        "ttm", build_musicgen, MusicLoadOptions(dtype="float32"),
        lambda m: m.compose(MusicRequest(["a waltz"]), MusicOptions(duration=0.2, seed=3), Control()).audio.samples,
    ),
    "diffusers_image": (
        "tti", lambda folder: diffusion.save(diffusion.stable_diffusion(), folder), ImageLoadOptions(dtype="float32"),
        lambda m: m.generate(
            "a heron", ImageOptions(width=64, height=64, steps=2, seed=3, preview_every=1), Control()
        ).images[0].pixels,
    ),
    "diffusers_video": (
        "ttv", lambda folder: diffusion.save(video.wan(), folder), VideoLoadOptions(dtype="float32"),
        lambda m: m.generate(
            "a heron", VideoOptions(width=32, height=32, num_frames=5, steps=1, seed=3), Control()
        ).frames,
    ),
}  # fmt: skip


class Case:
    """One engine's tiny model on disk, and what it is asked to do."""

    def __init__(self, engine: str, folder: Path) -> None:
        modality, build, self.options, self.work = CASES[engine]
        self.path = build(folder / engine)
        self.spec = ModelSpec(id=f"{engine}-tiny", modality=modality, engine=engine, source=f"path:{self.path}")

    def load(self, device: Device, options: LoadOptions | None = None) -> Any:
        engine, chosen = engine_class(self.spec.engine), options or self.options
        plan = engine.footprint(self.spec, self.path, device, chosen, 1 << 40)
        return engine.load(self.spec, self.path, device, chosen, plan)


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("parking"))


@pytest.fixture
def model(case: Case) -> Iterator[Any]:
    loaded = case.load(CARD)
    yield loaded
    loaded.close()


def tensors() -> dict[int, int]:
    """Bytes of every tensor's storage that is alive in this process, by address."""
    import torch

    gc.collect()
    # asked for by type: isinstance() wakes lazy modules and deprecated attributes
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive if not t.is_meta}


def test_what_is_parked_is_all_that_a_model_holds_after_its_work(case: Case) -> None:
    case.load(CPU).close()  # what libraries keep for good
    before = tensors()
    model = case.load(CARD)
    case.work(model)
    held = {address: size for address, size in tensors().items() if address not in before}
    _, networks = model._on_device()
    moved = {t.untyped_storage().data_ptr() for n in networks for t in (*n.parameters(), *n.buffers())}
    assert model.parked_bytes == sum(size for address, size in held.items() if address in moved)
    rest = sum(size for address, size in held.items() if address not in moved)
    assert rest < 1 << 16 < model.parked_bytes  # a scheduler's tables, which stay in RAM
    model.close()


def test_it_works_as_before_after_it_was_parked(case: Case, model: Any) -> None:
    first = np.asarray(case.work(model))
    model.park()
    model.unpark()
    assert np.array_equal(first, np.asarray(case.work(model)))


def test_on_a_cpu_there_is_nothing_to_park(case: Case) -> None:
    model = case.load(CPU)
    assert model.parked_bytes == 0
    model.close()


def test_parts_that_wait_in_ram_anyway_are_not_parked(tmp_path: Path) -> None:
    case = Case("bark", tmp_path)
    model = case.load(CARD, SpeechLoadOptions(offload="parts", dtype="float32"))
    assert model.parked_bytes == 0
    model.close()
