"""A model's folder from a stranger, through the binding and the runtime: nothing in it is run, and nothing is loaded.

Every attack leaves a trace if it succeeds: a file beside the models folder that its code would make.
"""

from __future__ import annotations

import builtins
import functools
import json
import pickle
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lollms_client import LollmsClient

from lollms_local import weights
from lollms_local.catalog import Catalog
from lollms_local.errors import CatalogError, LocalModelError
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny import diffusion, image_models, video
from tests.tiny.bark import build_bark
from tests.tiny.gguf import llama
from tests.tiny.musicgen import build_musicgen
from tests.tiny.vits import build_vits
from tests.tiny.whisper import build_tiny_whisper
from tests.unit.wheels import make_wheel, only_this_index

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

#: engine -> modality, and where its weights are
WEIGHTS = {
    "llama": ("llm", "model.gguf"),
    "whisper": ("stt", "model.bin"),
    "piper": ("tts", "voice.onnx"),
    "bark": ("tts", "model.safetensors"),
    "vits": ("tts", "model.safetensors"),
    "musicgen": ("ttm", "model.safetensors"),
    "picture": ("tti", "unet/diffusion_pytorch_model.safetensors"),
    "film": ("ttv", "unet/diffusion_pytorch_model.safetensors"),
}
PIPELINES = ("picture", "film")
TRANSFORMERS = ("bark", "vits", "musicgen")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@functools.cache
def honest(engine: str) -> Path:
    """A whole tiny model, shared: copies of it are attacked."""
    folder = image_models.root() / f"honest-{engine}"
    if engine == "picture":
        return image_models.folder("sd")
    if engine == "film":
        return diffusion.save(video.text_to_video_sd(), folder)
    folder.mkdir()
    if engine == "llama":
        llama(folder / "model.gguf")
    elif engine == "piper":
        (folder / "voice.onnx").write_bytes(b"\x08\x07" + bytes(1000))
        (folder / "voice.onnx.json").write_text(json.dumps({"audio": {"sample_rate": 22050}, "phoneme_id_map": {}}))
    else:
        build = {"whisper": build_tiny_whisper, "bark": build_bark, "vits": build_vits, "musicgen": build_musicgen}
        build[engine](folder)  # type: ignore[operator]
    return folder


class World:
    """A models folder with a stranger's model, and all that must stay as it is around it."""

    def __init__(self, root: Path, runtime: Runtime) -> None:
        self.root, self.runtime, self.models = root, runtime, root / "models"
        self.trace = root / "executed"

    def model(self, engine: str, name: str = "stranger") -> Path:
        return Path(shutil.copytree(honest(engine), self.models / name))

    def binding(self, engine: str) -> Any:
        modality = WEIGHTS[engine][0]
        other = {} if modality == "llm" else {"llm_binding_name": ""}
        given = {f"{modality}_binding_name": f"local_{modality}", **other}
        return getattr(LollmsClient(debug=False, **given), modality)

    def refuses(self, engine: str, name: str = "stranger") -> str:
        """Both doors are shut: the host's, and the library's own; gives the reason."""
        binding = self.binding(engine)
        assert binding.load_model(name) is False
        reason = str(binding.get_last_error())
        with pytest.raises(LocalModelError) as refusal:
            self.runtime.call(binding.job(name), lambda model: None)
        assert refusal.value.message.endswith(".") and reason.startswith(refusal.value.message[:40])
        assert self.runtime.manager.snapshot() == []
        assert not self.trace.exists(), f"code of the model was run: {reason}"
        return reason


def _around(root: Path) -> dict[str, bytes]:
    """Everything beside the models folder."""
    found = (p for p in sorted(root.rglob("*")) if p.is_file() and root / "models" not in p.parents)
    return {str(p.relative_to(root)): p.read_bytes() for p in found}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("models", "outside", "cwd"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (tmp_path / "cwd" / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'executed')!r}).touch()\n")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.syspath_prepend(str(tmp_path / "cwd"))  # the most that an attacker could hope for
    asked: list[str] = []
    # whoever is asked whether a stranger's code may run says yes
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    runtime = Runtime(Settings(models_dir=str(tmp_path / "models")))
    before, around = set_runtime(runtime), _around(tmp_path)
    yield World(tmp_path, runtime)
    set_runtime(before)
    runtime.manager.close()
    assert not asked, "nobody is asked to trust a stranger"
    assert _around(tmp_path) == around, "nothing is written outside the models folder"
    assert "evil" not in sys.modules and not [name for name in sys.modules if name.startswith("transformers_modules")]


def test_the_traps_work(tmp_path: Path) -> None:
    """Else every test below would pass by itself."""
    pickle.loads(pickle.dumps(Touch(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("engine", [engine for engine in WEIGHTS if engine != "piper"])
def test_the_honest_copy_loads(engine: str, world: World) -> None:
    world.model(engine)
    binding = world.binding(engine)
    assert binding.load_model("stranger") is True, binding.get_last_error()
    assert binding.get_loaded_models() == ["stranger"]


# --- pickles ----------------------------------------------------------------------------------------------------------


def pickles(trace: Path) -> dict[str, bytes]:
    """The same trap in every wrapping that torch and joblib use."""
    import io

    import torch

    packed, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"weight": Touch(trace)}, packed)
    torch.save({"weight": Touch(trace)}, legacy, _use_new_zipfile_serialization=False)
    return {
        "protocol 0": pickle.dumps(Touch(trace), 0),
        "protocol 5": pickle.dumps(Touch(trace), 5),
        "torch": packed.getvalue(),
        "old torch": legacy.getvalue(),
    }


@pytest.mark.parametrize("engine", WEIGHTS)
def test_a_pickle_under_the_name_of_safe_weights_is_not_opened(engine: str, world: World) -> None:
    file = world.model(engine) / WEIGHTS[engine][1]
    for data in pickles(world.trace).values():
        file.write_bytes(data)
        world.refuses(engine)


@pytest.mark.parametrize("engine", [*TRANSFORMERS, *PIPELINES])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt", "model.pt"])
def test_pickled_weights_under_their_usual_names_are_no_weights(engine: str, name: str, world: World) -> None:
    file = world.model(engine) / WEIGHTS[engine][1]
    file.unlink()
    file.with_name(name).write_bytes(pickles(world.trace)["torch"])
    world.refuses(engine)


@pytest.mark.parametrize("engine", PIPELINES)
def test_a_checkpoint_named_safetensors_that_is_a_pickle_is_not_opened(engine: str, world: World) -> None:
    (world.models / "stranger.safetensors").write_bytes(pickles(world.trace)["torch"])
    world.refuses(engine, "stranger.safetensors")


# --- code beside the weights ------------------------------------------------------------------------------------------


def edit(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**data, **changes}))


AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
    "AutoFeatureExtractor": "evil.Extractor",
    "AutoProcessor": "evil.Processor",
}


@pytest.mark.parametrize("engine", TRANSFORMERS)
@pytest.mark.parametrize("unknown", [False, True], ids=["known classes", "unknown classes"])
def test_auto_map_runs_nothing_and_asks_nobody(engine: str, unknown: bool, world: World) -> None:
    folder = world.model(engine)
    shutil.copy(world.root / "cwd" / "evil.py", folder / "evil.py")
    edit(folder / "config.json", auto_map=AUTO_MAP)
    edit(folder / "tokenizer_config.json", auto_map=AUTO_MAP, **({"tokenizer_class": "Evil"} if unknown else {}))
    edit(folder / "preprocessor_config.json", auto_map=AUTO_MAP)
    edit(folder / "processor_config.json", auto_map=AUTO_MAP)
    world.binding(engine).load_model("stranger")  # with its own classes, or not at all
    assert not world.trace.exists()


@pytest.mark.parametrize("engine", PIPELINES)
def test_auto_map_in_a_pipeline_s_parts_runs_nothing(engine: str, world: World) -> None:
    folder = world.model(engine)
    for part in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"):
        edit(folder / part, auto_map=AUTO_MAP)
    shutil.copy(world.root / "cwd" / "evil.py", folder / "evil.py")
    world.binding(engine).load_model("stranger")
    assert not world.trace.exists()


@pytest.mark.parametrize("engine", PIPELINES)
@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": ["pipeline", "Evil"]},
        {"_class_name": "evil.Evil"},
        {"_class_name": "Evil", "custom_pipeline": "evil"},
        {"unet": ["evil", "Evil"]},
        {"unet": ["os", "system"]},
        {"unet": ["..evil", "Evil"]},
        {"scheduler": ["evil", "Evil"]},
        {"tokenizer": ["evil", "Evil"]},
        {"../outside": ["diffusers", "UNet2DConditionModel"]},
    ],
    ids=json.dumps,
)
def test_a_pipeline_that_names_code_of_its_own_is_refused(engine: str, changes: dict[str, Any], world: World) -> None:
    folder = world.model(engine)
    for name in ("evil.py", "pipeline.py", "unet/evil.py", "scheduler/evil.py"):
        shutil.copy(world.root / "cwd" / "evil.py", folder / name)
    edit(folder / "model_index.json", **changes)
    world.refuses(engine)


# --- ways out of the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../outside", "..", "a/../../outside", "link", "link/..", "./../outside/model"])
def test_a_name_never_leads_out_of_the_models_folder(name: str, world: World) -> None:
    for engine in ("whisper", "llama"):
        shutil.copytree(honest(engine), world.root / "outside", dirs_exist_ok=True)
    shutil.copytree(honest("whisper"), world.root / "outside" / "model")
    (world.models / "link").symlink_to(world.root / "outside")
    here = _around(world.root)
    for engine in ("whisper", "llama"):
        binding = world.binding(engine)
        assert binding.load_model(name) is False
        assert binding.get_loaded_models() == [] == world.runtime.manager.snapshot()
    assert _around(world.root) == here
    shutil.rmtree(world.root / "outside")
    (world.root / "outside").mkdir()
    (world.root / "outside" / "secret.txt").write_text("secret")


@pytest.mark.parametrize("engine", [*TRANSFORMERS, *PIPELINES])
def test_an_index_of_shards_names_no_file_elsewhere(engine: str, world: World) -> None:
    file = world.model(engine) / WEIGHTS[engine][1]
    elsewhere = world.models / "elsewhere.safetensors"
    shutil.move(file, elsewhere)
    for shard in ("../elsewhere.safetensors", "../../elsewhere.safetensors", str(elsewhere)):
        rows = {"metadata": {}, "weight_map": {"weight": shard}}
        file.with_name(file.name + ".index.json").write_text(json.dumps(rows))
        world.refuses(engine)


@pytest.mark.parametrize(
    "text",
    [
        "models: !!python/object/apply:os.system ['touch {trace}']\n",
        "!!python/object/new:pathlib.Path ['{trace}']\n",
        "{{id: x, modality: stt, engine: faster_whisper, source: 'pypi:x==1', files: [{{path: ../../executed}}]}}\n",
        "{{id: ../executed, modality: stt, engine: faster_whisper, source: 'pypi:x==1'}}\n",
        "{{id: x, modality: stt, engine: 'os.system', source: 'pypi:--index-url=evil'}}\n",
    ],
)
def test_a_models_file_from_a_stranger_is_data_and_judged(text: str, world: World) -> None:
    row = text.format(trace=world.trace)
    file = world.models / "models.yaml"
    file.write_text(row if row.startswith(("models:", "!!")) else f"models:\n- {row}")
    with pytest.raises(CatalogError):
        Catalog.read(file)
    assert not world.trace.exists()


def test_a_wheel_with_ways_out_gives_its_named_file_and_writes_nowhere_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {
        "../../executed": b"x",
        "/executed": b"x",
        "weights/../../../executed": b"x",
        "setup.py": f"import pathlib; pathlib.Path({str(world.trace)!r}).touch()".encode(),
        "weights/model.bin": (honest("whisper") / "model.bin").read_bytes(),
        "weights/pickled.json": pickle.dumps(Touch(world.trace)),
    }
    index = world.models / ".index"
    make_wheel(index, members)
    only_this_index(monkeypatch, index)
    kind = "modality: stt, engine: faster_whisper, source: 'pypi:fake-weights==1.0'"
    for name, rule in {
        "out": "{path: model.bin, member: ../../executed}",
        "pickled": "{path: pickled.json, member: weights/pickled.json}",
        "named": "{path: model.bin, member: weights/model.bin}",
    }.items():
        (world.models / "models.yaml").write_text(f"models:\n- {{id: {name}, {kind}, files: [{rule}]}}\n")
        spec = Catalog.read(world.models / "models.yaml").get(name)
        if name == "named":
            folder = weights.fetch(spec, world.models)
            assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == ["model.bin"]
        else:
            with pytest.raises(LocalModelError):
                weights.fetch(spec, world.models)
            assert not (world.models / name).exists()
    assert not world.trace.exists()


# --- headers that ask for the world -----------------------------------------------------------------------------------


def _safetensors(rows: Any) -> bytes:
    head = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    return struct.pack("<Q", len(head)) + head + bytes(64)


def _tensor(shape: list[int], end: int) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


SAFETENSORS = {
    "length of 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "length of 99 MB": struct.pack("<Q", 99_000_000) + b"{}",
    "shape of 2^62": _safetensors(_tensor([1 << 31, 1 << 31], 1 << 62)),
    "end of 2^62": _safetensors(_tensor([16], 1 << 62)),
    "deep": _safetensors(b"[" * 200_000),
    "duplicate ends": _safetensors({"a": _tensor([16], 64)["a"], "b": _tensor([16], 64)["a"]}),
}
_GGUF = b"GGUF" + struct.pack("<I", 3)
_KEY = struct.pack("<Q", 1) + b"k"
GGUF = {
    "2^62 tensors": _GGUF + struct.pack("<QQ", 1 << 62, 0),
    "2^62 entries": _GGUF + struct.pack("<QQ", 0, 1 << 62),
    "text of 2^62": _GGUF + struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<IQ", 8, 1 << 62),
    "list of 2^62": _GGUF + struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<IIQ", 9, 0, 1 << 62),
    "lists in lists": _GGUF + struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9999,
    "shape of 2^62": _GGUF + struct.pack("<QQ", 1, 0) + _KEY + struct.pack("<IQQIQ", 2, 1 << 31, 1 << 31, 0, 0),
    "rank of 2^32": _GGUF + struct.pack("<QQ", 1, 0) + _KEY + struct.pack("<I", 0xFFFFFFFF),
}
_CT2 = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<I", 3)
CT2 = {
    "2^32 variables": _CT2 + struct.pack("<I", 0xFFFFFFFF),
    "name of 65535": _CT2 + struct.pack("<IH", 1, 0xFFFF),
    "shape of 2^62": _CT2 + struct.pack("<IH", 1, 2) + b"a\0" + struct.pack("<BIIBI", 2, 1 << 31, 1 << 31, 0, 0),
    "rank of 255": _CT2 + struct.pack("<IH", 1, 2) + b"a\0" + b"\xff",
}
ONNX = {
    "length of 2^63": b"\x3a" + b"\xff" * 9 + b"\x01" + bytes(64),
    "a graph that is cut": b"\x08\x07\x3a\xff\xff\xff\x7f" + bytes(64),
    "groups in groups": b"\x0b" * 100_000,
}
HEADERS = [
    *(("llama", GGUF, name) for name in GGUF),
    *(("whisper", CT2, name) for name in CT2),
    *(("piper", ONNX, name) for name in ONNX),
    *((engine, SAFETENSORS, name) for engine in (*TRANSFORMERS, *PIPELINES) for name in SAFETENSORS),
]


@pytest.mark.parametrize(("engine", "headers", "name"), HEADERS, ids=[f"{e}: {n}" for e, _, n in HEADERS])
def test_a_header_that_asks_for_the_world_costs_nothing(
    engine: str, headers: dict[str, bytes], name: str, world: World
) -> None:
    honest(engine)  # built before memory is looked at
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (world.model(engine) / WEIGHTS[engine][1]).write_bytes(headers[name])
    world.refuses(engine)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 1 << 30, "the library itself may be imported, and no more"


def _deep(file: Path) -> None:
    file.write_text("[" * 100_000 + "]" * 100_000)


def _layers(file: Path) -> None:
    keys = ("num_layers", "num_hidden_layers", "decoder_layers", "layers_per_block", "num_attention_heads")
    edit(file, **dict.fromkeys(keys, 10**9), decoder=dict.fromkeys(keys, 10**9))


@pytest.mark.parametrize("attack", [_deep, _layers])
@pytest.mark.parametrize("engine", [*TRANSFORMERS, *PIPELINES])
def test_a_config_that_asks_for_the_world_is_refused_at_once(
    engine: str, attack: Callable[[Path], None], world: World
) -> None:
    folder = world.model(engine)
    attack(folder / ("unet/config.json" if engine in PIPELINES else "config.json"))
    world.refuses(engine)


@pytest.mark.parametrize("engine", PIPELINES)
def test_an_index_that_nests_without_end_is_refused(engine: str, world: World) -> None:
    _deep(world.model(engine) / "model_index.json")
    world.refuses(engine)


def test_a_folder_that_leads_into_itself_ends(world: World) -> None:
    folder = world.model("whisper")
    (folder / "again").symlink_to(folder)
    (world.models / "loop").symlink_to(world.models / "loop")
    binding = world.binding("whisper")
    assert "stranger" in binding.list_models()
    assert binding.load_model("loop") is False
    assert binding.load_model("stranger") is True
