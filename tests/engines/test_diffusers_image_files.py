"""Model files: what is refused before a load, what is handled, what may replace a part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lollms_local.devices import Device
from lollms_local.engines._diffusion_place import place
from lollms_local.errors import LoadError, UnsupportedRequest
from lollms_local.fit import FitPlan
from lollms_local.footprint import read_safetensors
from lollms_local.modalities.image import Lora, read_edit_input
from tests.tiny import diffusion, diffusion_parts
from tests.tiny.image_models import copy, folder, load, loaded, pixels, plain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def edit_json(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, **changes}))


def without(file: Path, *words: str) -> int:
    """Rewrite a safetensors file without the tensors whose names have all the words; how many there were."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    kept = {name: tensor.clone() for name, tensor in tensors.items() if not all(word in name for word in words)}
    file.unlink()
    save_file(kept, file, metadata={"format": "pt"})
    return len(tensors) - len(kept)


# --- measured before the load ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", diffusion.FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_planned_are_the_bytes_loaded(family: str, dtype: str) -> None:
    from lollms_local.engines._diffusers import inspect_folder, measured_bytes
    from lollms_local.engines._torch import tensor_bytes

    planned = sum(inspect_folder(folder(family)).part_bytes(dtype).values())
    model = load(folder(family), dtype=dtype)
    buffers = measured_bytes(model._pipe) - planned
    assert 0 <= buffers <= 4096  # position numbers and rotary tables are made, not read
    assert tensor_bytes(model._pipe.vae) == inspect_folder(folder(family)).part("vae").nbytes(dtype)  # type: ignore[union-attr]


def test_closing_lets_go_of_every_network() -> None:
    import gc
    import weakref

    model = load(folder("sd"))
    pixels(model, edit=read_edit_input(Image.new("RGB", (32, 32))))
    networks = [weakref.ref(part) for part in (model._pipe.unet, model._pipe.vae, model._pipe.text_encoder)]
    model.close()
    model.close()
    gc.collect()
    assert [ref() for ref in networks] == [None, None, None]


# --- refused --------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(LoadError, match=r"no model_index\.json"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"_class_name": 3}'])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(LoadError):
        load(tmp_path)


def test_a_part_that_needs_code_of_its_own_is_refused_and_not_run(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    (model / "unet" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_json(model / "model_index.json", unet=["evil", "Evil"])
    with pytest.raises(LoadError, match="never run"):
        load(model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("entry", [["os", "system"], ["../../x", "Y"], ["diffusers", "a b"], ["onlyone"]])
def test_an_index_that_names_other_libraries_is_refused(tmp_path: Path, entry: list[str]) -> None:
    model = copy("sd", tmp_path / "m")
    edit_json(model / "model_index.json", unet=entry)
    with pytest.raises(LoadError):
        load(model)


def test_a_pipeline_class_from_a_file_is_refused(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    edit_json(model / "model_index.json", _class_name=["pipeline", "Mine"])
    with pytest.raises(LoadError, match="code of its own"):
        load(model)


def test_pickled_weights_are_refused_and_not_opened(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(LoadError, match="pickled"):
        load(model)


def test_a_cut_file_is_refused_by_its_header(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LoadError, match="damaged"):
        load(model)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "m"
    diffusion.save(diffusion.stable_diffusion(), model, max_shard_size="100KB")
    shards = sorted((model / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert pixels(load(model)).std() > 5
    shards[0].unlink()
    with pytest.raises(LoadError, match="missing"):
        load(model)


@pytest.mark.parametrize(
    ("family", "part", "file", "words"),
    [
        ("sd", "unet", "diffusion_pytorch_model", ("mid_block", "conv1.weight")),
        ("sd", "text_encoder", "model", ("layers.1", "fc1.weight")),
        ("sd", "vae", "diffusion_pytorch_model", ("decoder.conv_out",)),
        ("flux", "transformer", "diffusion_pytorch_model", ("proj_out.weight",)),
        ("sd3", "text_encoder_3", "model", ("block.1", "wi")),
        ("zimage", "text_encoder", "model", ("layers.2", "gate_proj")),
    ],
)
def test_missing_tensors_are_refused_not_drawn_at_random(
    tmp_path: Path, family: str, part: str, file: str, words: tuple[str, ...]
) -> None:
    model = copy(family, tmp_path / "m")
    assert without(model / part / f"{file}.safetensors", *words) > 0
    with pytest.raises(LoadError, match=r"missing|not loaded"):
        load(model)


def test_a_config_that_asks_for_more_layers_than_the_file_has_is_refused(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    edit_json(model / "text_encoder" / "config.json", num_hidden_layers=7)
    with pytest.raises(LoadError, match="missing"):
        load(model)


def test_a_config_with_an_absurd_number_is_refused_at_once(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    edit_json(model / "text_encoder" / "config.json", num_hidden_layers=1_000_000)
    with pytest.raises(LoadError, match="no model has"):
        load(model)


def test_a_class_that_the_libraries_do_not_know_is_refused(tmp_path: Path) -> None:
    model = copy("sd", tmp_path / "m")
    edit_json(model / "model_index.json", unet=["diffusers", "UNetOfTomorrow"])
    with pytest.raises(LoadError, match="no installed library knows"):
        load(model)


# --- handled --------------------------------------------------------------------------------------------------------


def test_a_folder_with_only_fp16_weights_loads_without_being_told(tmp_path: Path) -> None:
    import torch

    pipe = diffusion.stable_diffusion()
    diffusion.save(pipe.to(torch.float16), tmp_path / "m", variant="fp16")
    assert not list((tmp_path / "m").rglob("model.safetensors"))
    model = load(tmp_path / "m")
    assert model._pipe.unet.dtype is torch.float32
    difference = pixels(model).astype(int) - pixels(loaded("sd")).astype(int)
    assert abs(difference).mean() < 3


def test_a_folder_with_two_variants_loads_and_counts_one(tmp_path: Path) -> None:
    from lollms_local.engines._diffusers import inspect_folder

    model = copy("sd", tmp_path / "m")
    single = sum(inspect_folder(model).part_bytes("float32").values())
    for file in model.rglob("*.safetensors"):
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
    assert sum(inspect_folder(model).part_bytes("float32").values()) == single
    assert np.array_equal(pixels(load(model)), pixels(loaded("sd")))


def test_the_safety_checker_can_be_left_out(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    config = CLIPConfig(
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=16,
    )
    bare = diffusion.stable_diffusion()
    checked = StableDiffusionPipeline(
        **{
            **bare.components,
            "safety_checker": StableDiffusionSafetyChecker(config),
            "feature_extractor": CLIPImageProcessor(),
        }
    )
    model = diffusion.save(checked, tmp_path / "m")
    assert load(model)._pipe.safety_checker is not None
    without_it = load(model, safety_checker=False)
    assert without_it._pipe.safety_checker is None
    assert np.array_equal(pixels(without_it), pixels(loaded("sd")))


# --- replaced parts -------------------------------------------------------------------------------------------------


def test_another_vae_is_used_instead_of_the_model_s_own(tmp_path: Path) -> None:
    import torch

    vae = diffusion_parts.kl_vae(levels=2)
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(0.5)
    vae.save_pretrained(tmp_path / "vae")
    model = load(folder("sd"), vae=str(tmp_path / "vae"))
    assert pixels(model).mean() > pixels(loaded("sd")).mean() + 10


def test_a_vae_for_another_kind_of_latents_is_refused(tmp_path: Path) -> None:
    diffusion_parts.kl_vae(latent_channels=16).save_pretrained(tmp_path / "vae")
    with pytest.raises(LoadError, match="latent channels"):
        load(folder("sd"), vae=str(tmp_path / "vae"))


def config_only(family: str, target: Path) -> Path:
    """A pipeline's folder without its weights: json and tokenizers."""
    return Path(shutil.copytree(folder(family), target, ignore=shutil.ignore_patterns("*.safetensors")))


def sd_checkpoint(target: Path) -> Path:
    """The tiny SD pipeline as one file in the original layout, as checkpoints are shared."""
    from safetensors.torch import load_file, save_file

    from tests.tiny.original_layout import original_sd

    home = folder("sd")
    parts = {
        "unet": load_file(home / "unet/diffusion_pytorch_model.safetensors"),
        "vae": load_file(home / "vae/diffusion_pytorch_model.safetensors"),
        "text_encoder": load_file(home / "text_encoder/model.safetensors"),
    }
    save_file(original_sd(parts), target, metadata={"format": "pt"})
    return target


def test_a_transformer_from_a_file_of_its_own_makes_the_same_picture(tmp_path: Path) -> None:
    weights = folder("qwenimage") / "transformer" / "diffusion_pytorch_model.safetensors"
    other = shutil.copy(weights, tmp_path / "transformer.safetensors")
    config = config_only("qwenimage", tmp_path / "m")
    for part in ("vae", "text_encoder"):
        shutil.copytree(folder("qwenimage") / part, config / part, dirs_exist_ok=True)
    assert np.array_equal(pixels(load(config, transformer=str(other))), pixels(loaded("qwenimage")))


def test_a_transformer_for_a_model_without_one_is_refused(tmp_path: Path) -> None:
    other = shutil.copy(folder("sd") / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "t.safetensors")
    with pytest.raises(UnsupportedRequest, match="no transformer"):
        load(folder("sd"), transformer=str(other))


def gguf_file(family: str, target: Path) -> Path:
    """The tiny transformer quantised to Q8_0 where its rows allow it."""
    import gguf
    from safetensors.numpy import load_file

    weights = load_file(folder(family) / "transformer" / "diffusion_pytorch_model.safetensors")
    writer = gguf.GGUFWriter(str(target), "flux")
    quantised = 0
    for name, tensor in weights.items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(tensor.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            quantised += 1
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert quantised > 3
    return target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_transformer_stays_quantised_and_makes_nearly_the_same_picture(tmp_path: Path, dtype: str) -> None:
    file = gguf_file("qwenimage", tmp_path / "t.gguf")
    model = load(folder("qwenimage"), transformer=str(file), dtype=dtype)
    stored = {str(p.dtype) for p in model._pipe.transformer.parameters()}
    assert "torch.uint8" in stored
    difference = pixels(model).astype(int) - pixels(loaded("qwenimage")).astype(int)
    assert 0 < abs(difference).mean() < 8


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all, but long enough to look like one"])
def test_a_damaged_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t.gguf"
    file.write_bytes(content)
    with pytest.raises(LoadError):
        load(folder("qwenimage"), transformer=str(file))


@pytest.mark.parametrize("place", ["beside it", "by option"])
def test_a_single_checkpoint_makes_the_picture_of_its_folder(tmp_path: Path, place: str) -> None:
    file = sd_checkpoint(tmp_path / "c.safetensors")
    config = config_only("sd", tmp_path / ("c" if place == "beside it" else "elsewhere"))
    model = load(file, **({} if place == "beside it" else {"checkpoint_config": str(config)}))
    assert np.array_equal(pixels(model), pixels(loaded("sd")))
    assert np.array_equal(
        pixels(model, edit=read_edit_input(Image.new("RGB", (32, 32)))),
        pixels(loaded("sd"), edit=read_edit_input(Image.new("RGB", (32, 32)))),
    )


def test_a_single_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    file = sd_checkpoint(tmp_path / "c.safetensors")
    config_only("sd", tmp_path / "c")
    assert without(file, "middle_block.1", "to_q") > 0
    with pytest.raises(LoadError):
        load(file)


def test_a_single_checkpoint_without_its_config_says_what_to_do(tmp_path: Path) -> None:
    file = Path(shutil.copy(folder("sd") / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "c.safetensors"))
    with pytest.raises(LoadError, match="does not say which pipeline") as refusal:
        load(file)
    assert "checkpoint_config" in refusal.value.hint


def test_a_single_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.ckpt"
    file.write_bytes(b"\x80\x02")
    with pytest.raises(LoadError, match="never loaded"):
        load(file)


# --- placement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["model_offload", "group_offload"])
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_offloading_makes_the_same_picture_and_survives_a_stop(family: str, placement: Any) -> None:
    """With the CPU as the accelerator: the library's own hooks run, only the copies go nowhere."""
    from lollms_local.engines.diffusers_image import DiffusersImage
    from lollms_local.errors import Cancelled
    from lollms_local.footprint import Footprint
    from lollms_local.modalities.base import Control
    from lollms_local.modalities.image import ImageLoadOptions
    from tests.tiny.image_models import CPU, ROOM, make, spec

    path, options = folder(family), ImageLoadOptions(dtype="float32")
    _, files = DiffusersImage.footprint(spec(path), path, CPU, options, ROOM).placement
    plan = FitPlan(placement, True, True, 0, 0, 0, True, "")
    model = DiffusersImage.load(spec(path), path, CPU, options, Footprint(0, placement=(plan, files)))
    expected = pixels(loaded(family))
    assert np.array_equal(pixels(model), expected)
    with pytest.raises(Cancelled):
        make(model, control=Control(lambda: True))
    seen: list[Any] = []
    with pytest.raises(Cancelled):
        make(model, control=Control(lambda: bool(seen), seen.append))
    assert np.array_equal(pixels(model), expected)
    assert pixels(model, edit=read_edit_input(Image.new("RGB", (32, 32)))).shape == (32, 32, 3)


def test_tiles_make_nearly_the_picture_of_the_whole() -> None:
    tiled = load(folder("sd"), vae_tiling="on", vae_slicing="on")
    assert tiled._pipe.vae.use_tiling and tiled._pipe.vae.use_slicing
    whole = pixels(loaded("sd"), width=128, height=64).astype(int)
    assert abs(pixels(tiled, width=128, height=64).astype(int) - whole).mean() < 8


def test_tiles_are_tiles_even_where_the_vae_was_trained_on_large_pictures() -> None:
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config({**diffusion_parts.kl_vae(levels=4, channels=4).config, "sample_size": 1024})
    plan = FitPlan("device", False, True, 0, 0, 0, True, "")
    place(SimpleNamespace(vae=vae), Device("cpu"), plan)
    sides: list[int] = []
    vae.decoder.register_forward_pre_hook(lambda module, latents: sides.append(max(latents[0].shape[-2:])))
    with torch.no_grad():
        picture = vae.decode(torch.zeros(1, 4, 80, 64)).sample
    assert picture.shape == (1, 3, 640, 512)
    assert len(sides) > 1 and max(sides) * 8 <= 512


def test_offloading_without_a_gpu_is_refused() -> None:
    with pytest.raises(UnsupportedRequest, match="needs a GPU"):
        load(folder("sd"), placement="model_offload")


def test_an_attention_backend_that_is_not_installed_is_refused() -> None:
    with pytest.raises(UnsupportedRequest, match="attention backend"):
        load(folder("flux"), attention="sage")
    assert np.array_equal(pixels(load(folder("flux"), attention="native")), pixels(loaded("flux")))


def test_step_caching_is_an_option_of_transformers_only() -> None:
    assert pixels(load(folder("flux"), step_cache=0.5), steps=4).std() > 5
    with pytest.raises(UnsupportedRequest, match="Step caching"):
        load(folder("sd"), step_cache=0.1)


# --- LoRA -----------------------------------------------------------------------------------------------------------


def lora_file(family: str, target: Path, *, seed: int = 0, scale: float = 1.0) -> Path:
    """A LoRA for the attention of the family's denoiser, in the format of diffusers and peft."""
    import torch
    from safetensors.torch import save_file

    pipe = plain(family)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, layer in getattr(pipe, name).named_modules():
        if module.endswith(("to_q", "to_v")):
            rank, (rows, columns) = 2, layer.weight.shape
            tensors[f"{name}.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * scale
            tensors[f"{name}.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * scale
    assert tensors
    save_file(tensors, target, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_a_lora_changes_the_picture_by_its_weight_and_is_gone_afterwards(tmp_path: Path, family: str) -> None:
    model = load(folder(family))
    base = pixels(model)
    lora = lora_file(family, tmp_path / "style.safetensors")
    full = pixels(model, loras=(Lora(lora, 1.0),))
    half = pixels(model, loras=(Lora(lora, 0.5),))
    assert not np.array_equal(base, full) and not np.array_equal(half, full)
    assert np.array_equal(base, pixels(model, loras=(Lora(lora, 0.0),)))
    assert np.array_equal(base, pixels(model))
    assert np.array_equal(full, pixels(model, loras=(Lora(lora, 1.0),)))


def test_two_loras_together_differ_from_each_alone(tmp_path: Path) -> None:
    model = load(folder("sd"))
    one, two = (Lora(lora_file("sd", tmp_path / f"{k}.safetensors", seed=k)) for k in (1, 2))
    both = pixels(model, loras=(one, two))
    assert not np.array_equal(both, pixels(model, loras=(one,)))
    assert not np.array_equal(both, pixels(model, loras=(two,)))
    assert np.array_equal(both, pixels(model, loras=(two, one)))


@pytest.mark.parametrize("other", ["flux", "sdxl"])
def test_a_lora_for_another_architecture_is_refused_and_changes_nothing(tmp_path: Path, other: str) -> None:
    model = load(folder("sd"))
    base = pixels(model)
    good = Lora(lora_file("sd", tmp_path / "good.safetensors"))
    styled = pixels(model, loras=(good,))
    with pytest.raises(UnsupportedRequest, match=r"bad\.safetensors"):
        pixels(model, loras=(Lora(lora_file(other, tmp_path / "bad.safetensors")),))
    assert np.array_equal(base, pixels(model))
    assert np.array_equal(styled, pixels(model, loras=(good,)))


def test_jobs_with_different_loras_at_once_each_get_their_own_picture(tmp_path: Path) -> None:
    import threading

    model = load(folder("sd"))
    sets: list[tuple[Lora, ...]] = [
        (),
        (Lora(lora_file("sd", tmp_path / "1.safetensors", seed=1)),),
        (Lora(lora_file("sd", tmp_path / "2.safetensors", seed=2)),),
    ]
    alone = [pixels(model, loras=loras) for loras in sets]
    together: dict[int, list[Any]] = {}

    def work(k: int) -> None:
        together[k] = [pixels(model, loras=sets[k]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(alone[k], made) for k in range(3) for made in together[k])


def test_reading_a_header_finds_the_tensors_of_a_lora(tmp_path: Path) -> None:
    assert all(".lora_" in name for name in read_safetensors(lora_file("sd", tmp_path / "l.safetensors")))


def test_on_a_cpu_the_heap_s_holes_count_and_never_more_than_were_seen() -> None:
    from dataclasses import replace

    from lollms_local.engines._image_plan import image_workspace
    from lollms_local.engines.diffusers_image import DiffusersImage
    from lollms_local.modalities.image import ImageLoadOptions
    from tests.tiny.image_models import CPU, ROOM, spec

    path = folder("sd")
    found = DiffusersImage.footprint(spec(path), path, CPU, ImageLoadOptions(dtype="float32"), ROOM)
    _, files = found.placement
    for weights, holes in ((100 << 20, 50 << 20), (7 << 30, 140 << 20)):
        sized = replace(files, part_bytes={"unet": weights})
        card, ram = image_workspace(sized, 512, 512), image_workspace(sized, 512, 512, in_ram=True)
        assert ram.decode_bytes == int(0.8 * card.decode_bytes) + holes
        assert ram.denoise_bytes == int(0.8 * card.denoise_bytes) + holes
    weights = sum(files.part_bytes.values())
    assert found.weights_bytes == weights and found.workspace_bytes > weights // 2
