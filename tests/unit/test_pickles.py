"""Weights that a repository has only as a pickle: converted at the download, tensor by tensor, or refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lollms_local import downloads, pickles, weights
from lollms_local.catalog import ModelSpec
from lollms_local.devices import Device
from lollms_local.downloads import DownloadProgress, PlannedFile
from lollms_local.engines.vits import VitsSpeech
from lollms_local.errors import Cancelled, DownloadError, EngineNotInstalled
from lollms_local.hub_choice import usual_files
from lollms_local.hub_source import HubSource
from lollms_local.modalities.base import Control
from lollms_local.modalities.speech import SpeechLoadOptions, SpeechOptions
from lollms_local.unpickle import to_safetensors
from tests.tiny.vits import build_vits

from .hub_server import FakeHub, serve

BARK = ModelSpec(id="net", modality="tts", engine="bark", source="hf:some/net")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that the user may reach."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with serve(FakeHub({"config.json": b'{"model_type": "bark"}'})) as running:
        yield running


def fetch(hub: FakeHub, folder: Path, spec: ModelSpec = BARK, **more: Any) -> Path:
    return downloads.download(spec, folder, source=HubSource(hub.address, pause=lambda s: None), **more)


def saved(folder: Path, table: Any, **how: Any) -> bytes:
    import torch

    file = folder / "written.bin"
    torch.save(table, file, **how)
    return file.read_bytes()


def tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    return {
        "plain": torch.randn(3, 5), "half": torch.randn(7).half(), "brain": torch.randn(7).bfloat16(),
        "whole": torch.arange(10), "flag": torch.tensor([True, False]), "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3), "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "shared": shared, "shared too": shared, "part": shared[1:3], "turned": shared.t(),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_every_tensor_arrives_bit_for_bit_and_the_pickle_is_gone(
    hub: FakeHub, tmp_path: Path, how: dict[str, Any]
) -> None:
    import torch
    from safetensors.torch import load_file

    table = tensors()
    hub.files["pytorch_model.bin"] = saved(tmp_path, table, **how)
    seen: list[DownloadProgress] = []
    folder = fetch(hub, tmp_path / "models", on_progress=seen.append)
    assert sorted(p.name for p in folder.iterdir()) == [".lollms_local.json", "config.json", "model.safetensors"]
    found = load_file(folder / "model.safetensors")
    assert set(found) == set(table)
    for name, tensor in table.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].flatten().view(torch.uint8), tensor.detach().flatten().view(torch.uint8)), name
    assert weights.is_downloaded(BARK, tmp_path / "models") and weights.verify(BARK, tmp_path / "models") == []
    assert any(p.file == "pytorch_model.bin" and p.stage == "check" for p in seen)


class Evil:
    """Writes a file when it is read by a reader that runs what a pickle says."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.file, "code ran")


def bad_pickles(folder: Path) -> dict[str, bytes]:
    import torch

    good = saved(folder, tensors())
    return {
        "runs code, as torch writes it": saved(folder, {"a": torch.ones(2), "b": Evil(folder / "ran")}),
        "runs code, bare": pickle.dumps(Evil(folder / "ran")),
        "a whole module": saved(folder, torch.nn.Linear(2, 2)),
        "not only tensors": saved(folder, {"a": torch.ones(2), "epoch": 3}),
        "a list": saved(folder, [torch.ones(2)]),
        "nothing": saved(folder, {}),
        "cut off": good[: len(good) // 2],
        "no pickle at all": b"<html>not found</html>" * 50,
    }


def test_what_is_not_a_table_of_tensors_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    for what, content in bad_pickles(tmp_path).items():
        (tmp_path / "bad.bin").write_bytes(content)
        with pytest.raises(Exception):  # noqa: B017  whichever class torch has for it; the child turns it into a line
            to_safetensors(tmp_path / "bad.bin", tmp_path / "made.safetensors")
        assert not (tmp_path / "ran").exists(), what
        assert not (tmp_path / "made.safetensors").exists(), what


def test_a_pickle_that_runs_code_installs_nothing_and_is_not_kept(hub: FakeHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    hub.files["pytorch_model.bin"] = bad_pickles(tmp_path)["runs code, as torch writes it"]
    with pytest.raises(DownloadError, match=r"net .* could not be made safe: UnpicklingError") as refusal:
        fetch(hub, models)
    assert refusal.value.hint and len(refusal.value.message) < 500
    assert not (tmp_path / "ran").exists()
    assert not (models / "net").exists() and not weights.is_downloaded(BARK, models)
    assert not [*models.rglob("*.bin"), *models.rglob("*.safetensors*")]
    hub.files["pytorch_model.bin"] = saved(tmp_path, tensors())
    assert fetch(hub, models) == models / "net"


def test_a_stop_during_the_conversion_ends_the_child_and_installs_nothing(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["pytorch_model.bin"] = saved(tmp_path, tensors())

    def stop(progress: DownloadProgress) -> None:
        if progress.stage == "convert":
            raise Cancelled()

    models = tmp_path / "models"
    with pytest.raises(Cancelled):
        fetch(hub, models, on_progress=stop)
    assert not (models / "net").exists() and not [*models.rglob("*.bin")]
    assert fetch(hub, models) == models / "net"


def test_an_altered_pickle_is_not_even_opened(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["pytorch_model.bin"] = saved(tmp_path, tensors())
    hub.wrong = {"pytorch_model.bin"}
    monkeypatch.setattr(pickles, "convert", lambda *_: pytest.fail("opened"))
    with pytest.raises(DownloadError, match="not what was published"):
        fetch(hub, tmp_path / "models")


def test_only_engines_that_read_the_result_get_pickles_and_only_where_there_is_nothing_better() -> None:
    def chosen(engine: str, *names: str) -> list[str]:
        spec = ModelSpec(id="net", modality="tts", engine=engine, source="hf:some/net")
        return [f.path for f in usual_files(spec, [PlannedFile(n, 10) for n in names])]

    bark = ("config.json", "pytorch_model.bin", "text.pt", "speaker_embeddings/a.npy", "vocab.txt", "run.py")
    assert chosen("bark", *bark) == ["pytorch_model.bin", "config.json", "speaker_embeddings/a.npy", "vocab.txt"]
    assert chosen("bark", *bark, "model.safetensors")[0] != "pytorch_model.bin"
    assert "pytorch_model.bin" not in chosen("bark", *bark, "model.safetensors")
    for engine, names in {
        "diffusers_image": ("config.json", "pytorch_model.bin"),
        "bark": ("config.json", "pytorch_model-00001-of-00002.bin", "text.pt", "folder/pytorch_model.bin"),
    }.items():
        with pytest.raises(DownloadError, match="only as pickles"):
            chosen(engine, *names)


def test_room_for_both_files_and_the_library_are_asked_for_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["pytorch_model.bin"] = b"x" * 30_000_000
    room = downloads.SPARE_BYTES + 45_000_000
    with pytest.raises(DownloadError, match=r"needs 0\.13 GB"):
        fetch(hub, tmp_path, free_bytes=lambda folder: room)
    monkeypatch.setattr(pickles.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineNotInstalled, match="torch"):
        fetch(hub, tmp_path)
    assert hub.gets == 0


def test_a_voice_published_as_a_pickle_speaks_as_its_safetensors_do(hub: FakeHub, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    built = build_vits(tmp_path / "built")
    hub.files = {p.name: p.read_bytes() for p in built.iterdir() if p.suffix == ".json"}
    hub.files["pytorch_model.bin"] = saved(tmp_path, load_file(built / "model.safetensors"))
    assert json.loads(hub.files["config.json"])["model_type"] == "vits"
    spec = ModelSpec(id="net", modality="tts", engine="vits", source="hf:some/net")
    sounds = []
    for folder in (built, fetch(hub, tmp_path / "models", spec)):
        options, cpu = SpeechLoadOptions(), Device("cpu")
        voice = VitsSpeech.load(spec, folder, cpu, options, VitsSpeech.footprint(spec, folder, cpu, options, 1 << 40))
        sounds.append(voice.speak("Hello there.", SpeechOptions(seed=1), Control()).audio.samples)
        voice.close()
    assert np.array_equal(*sounds)
