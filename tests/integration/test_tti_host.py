"""local_tti inside the real host, the real engine on tiny models: every form a host's caller uses, and what it gets."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lollms_client import LollmsClient
from PIL import Image
from typer.testing import CliRunner

from lollms_local.cli import app
from lollms_local.client import connect
from lollms_local.errors import Cancelled, LoadError, LocalModelError, MediaError, UnsupportedRequest
from lollms_local.media import decode_image, read_png_metadata
from lollms_local.modalities.image import read_recipe
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny import image_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
#: small and quick, in the host's own spelling: text
SMALL = {"steps": "2", "dtype": "float32", "seed": "3"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in ("sd", "flux"):
        image_models.copy(family, root / f"tiny-{family}")
    return root


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks this small only get slower with more."""
    import torch

    from lollms_local.engines import diffusers_image

    monkeypatch.setattr(diffusers_image, "cpu_threads", lambda: 1)
    torch.set_num_threads(1)


@pytest.fixture
def runtime(models: Path) -> Iterator[Runtime]:
    fresh = Runtime(Settings(models_dir=str(models)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


def client(model: str = "tiny-sd", **config: Any) -> LollmsClient:
    return connect(images=model, llm_binding_name="", tti_binding_config={**SMALL, **config})


def photo(width: int = 40, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def b64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return decode_image(data).size


def test_the_forms_that_the_host_s_callers_use_never_fail(runtime: Runtime) -> None:
    """None, text, numbers, `size=`, in every mix that chat tags, tools, personalities and the web application send."""
    tti = client()
    draw = random.Random(5)
    for _ in range(20):
        width, height = draw.choice([None, "None", "48", 64, 32.0, "", 0, 50]), draw.choice([None, "40", 56, "64", 0])
        extra = draw.choice(
            [
                {},
                {"size": "64x32"},
                {"size": "auto", "quality": "standard", "style": "vivid"},
                {"seed": "-1", "num_inference_steps": "1", "guidance_scale": "False"},
                {"seed": None, "steps": None, "n": None, "negative_prompt": None, "callback": None},
                {"cfg_scale": 1, "sampler": "euler_a", "unknown": object()},
            ]
        )
        made = tti.generate_image("a heron", width=width, height=height, **extra)
        assert min(size(made)) >= 32 and max(size(made)) <= 64


def test_the_prompt_alone_gives_the_model_s_own_size(runtime: Runtime) -> None:
    assert size(client().generate_image("a heron")) == (64, 64)
    assert size(client(width="32", height="40").generate_image("a heron")) == (32, 40)
    assert size(client(width="32").generate_image("a heron", size="48x64")) == (48, 64)
    assert size(client().tti.generate_image("a heron", "", 32, 48)) == (32, 48)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(runtime: Runtime) -> None:
    tti = client()
    assert tti.generate_image("a heron") == tti.generate_image("a heron", seed="3")
    assert tti.generate_image("a heron") != tti.generate_image("a heron", seed=4)


def test_a_png_says_how_it_was_made_and_the_command_makes_it_again(runtime: Runtime, tmp_path: Path) -> None:
    made = client().generate_image(
        "a heron, größer", size="32x40", seed=9, guidance=0, scheduler="euler_a", negative_prompt="water"
    )
    text = read_png_metadata(made)
    assert (text["prompt"], text["seed"], text["scheduler"], text["model"]) == (
        "a heron, größer", "9", "euler_a", "tiny-sd",
    )  # fmt: skip
    assert json.loads(text["lollms_local"])["version"]
    assert read_recipe(made).options["guidance"] == 0
    (tmp_path / "first.png").write_bytes(made)
    again = tmp_path / "again.png"
    run = CliRunner().invoke(
        app,
        ["image", "--from-metadata", str(tmp_path / "first.png"), "-o", str(again), "--dtype", "float32", "-q"],
    )
    assert run.exit_code == 0, run.output
    assert again.read_bytes() == made


def test_the_command_writes_pictures_a_grid_and_their_seeds(runtime: Runtime, tmp_path: Path) -> None:
    arguments = ["image", "a heron", "-m", "tiny-sd", "-n", "3", "--grid", "--size", "32x40", "--steps", "1"]
    run = CliRunner().invoke(app, [*arguments, "--seed", "7", "-o", str(tmp_path / "p.png")])
    assert run.exit_code == 0, run.output
    assert all(f"p-{seed}.png  seed {seed}" in run.output for seed in (7, 8, 9))
    grid = np.asarray(decode_image((tmp_path / "p-grid.png").read_bytes()))
    assert grid.shape == (80, 64, 3)
    assert np.array_equal(grid[40:, :32], np.asarray(decode_image((tmp_path / "p-9.png").read_bytes())))


def test_the_edit_command_changes_what_the_mask_marks(runtime: Runtime, tmp_path: Path) -> None:
    source, mask = photo(), Image.new("L", (40, 32))
    mask.paste(255, (0, 0, 20, 16))
    source.save(tmp_path / "s.png")
    mask.save(tmp_path / "m.png")
    files = [str(tmp_path / name) for name in ("s.png", "m.png", "out.png")]
    run = CliRunner().invoke(
        app,
        ["edit", files[0], "-p", "a cat", "--mask", files[1], "-o", files[2], "-m", "tiny-sd", "--steps", "2", "-q"],
    )
    assert run.exit_code == 0, run.output
    made = np.asarray(decode_image(Path(files[2]).read_bytes()))
    assert np.array_equal(made[16:], np.asarray(source)[16:])
    assert not np.array_equal(made[:16, :20], np.asarray(source)[:16, :20])


@pytest.mark.parametrize("form", ["base64", "data url", "path", "bytes", "pil", "list"])
def test_a_picture_to_edit_may_come_in_any_form(runtime: Runtime, tmp_path: Path, form: str) -> None:
    image = photo(43, 29)
    image.save(tmp_path / "s.png")
    given: Any = {
        "base64": b64(image),
        "data url": f"data:image/png;base64,{b64(image)}",
        "path": str(tmp_path / "s.png"),
        "bytes": png(image),
        "pil": image,
        "list": [b64(image)],
    }[form]
    made = client(width="64", height="64").edit_image(given, "a cat")
    assert size(made) == (43, 29), "without a size in the call the source keeps its own"
    assert made == client().edit_image(image, "a cat")


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-flux"])
def test_inpainting_leaves_every_pixel_outside_the_mask(runtime: Runtime, model: str) -> None:
    source, mask = photo(43, 29), Image.new("L", (43, 29))
    mask.paste(255, (5, 5, 20, 20))
    made = np.asarray(decode_image(client(model).edit_image(b64(source), "a cat", mask=b64(mask), strength=0.9)))
    outside = np.asarray(mask) == 0
    assert np.array_equal(made[outside], np.asarray(source)[outside])
    assert not np.array_equal(made, np.asarray(source))


def test_a_mask_by_transparency_changes_what_is_transparent(runtime: Runtime) -> None:
    source = photo()
    alpha = np.full((32, 40), 255, np.uint8)
    alpha[:16] = 0
    mask = Image.fromarray(np.dstack([np.asarray(source), alpha]))
    made = np.asarray(decode_image(client().edit_image(b64(source), "a cat", mask=b64(mask))))
    assert np.array_equal(made[16:], np.asarray(source)[16:])
    assert not np.array_equal(made[:16], np.asarray(source)[:16])


def test_generate_gives_several_pictures_with_their_seeds(runtime: Runtime) -> None:
    tti = client()
    result = tti.generate_omni("a heron", n="3", width=32, height=32, seed=10)
    assert result.first_image_bytes() == result.images[0]
    assert result["metadata"]["seeds"] == [10, 11, 12] and len(set(result.images)) == 3
    assert result.images[2] == tti.generate_image("a heron", width=32, height=32, seed=12)
    edited = tti.generate_omni("a cat", images=[b64(photo())], n=2)
    assert [size(data) for data in edited.images] == [(40, 32)] * 2


def test_paint_is_still_there_for_the_web_application(runtime: Runtime) -> None:
    tti = client().tti
    assert size(base64.b64decode(tti.paint("a heron", width=32, height=32))) == (32, 32)
    assert size(base64.b64decode(tti.paint("a cat", image=b64(photo())))) == (40, 32)


def test_the_host_s_watermark_is_drawn_and_the_recipe_stays(runtime: Runtime, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "w.png")
    marks = {"watermark_size_x": "8", "watermark_size_y": "8", "watermark_pos_x": "4", "watermark_pos_y": "2"}
    marked = client(watermark_path=str(tmp_path / "w.png"), **marks).generate_image("a heron")
    bare = np.asarray(decode_image(client().generate_image("a heron")))
    pixels = np.array(decode_image(marked).convert("RGB"))
    assert (pixels[2:10, 4:12] == (255, 0, 0)).all()
    pixels[2:10, 4:12] = bare[2:10, 4:12]
    assert np.array_equal(pixels, bare)
    assert read_recipe(marked).prompt == "a heron" and read_png_metadata(marked)["Binding"] == "local_tti"


def test_progress_reaches_the_caller_with_previews(runtime: Runtime) -> None:
    seen: list[dict[str, Any]] = []
    client().generate_image("a heron", steps=4, progress_callback=seen.append, preview_every=2)
    assert [row["completed"] for row in seen] == [1, 2, 3, 4, 5] and seen[-1]["percentage"] == 100
    assert [row["preview"] is not None for row in seen] == [False, True, False, True, False]


def test_cancel_from_another_thread_stops_and_the_next_picture_is_right(runtime: Runtime) -> None:
    binding = client().tti
    before = binding.generate_image("a heron")

    def tell(progress: dict[str, Any]) -> None:
        stopper = threading.Thread(target=binding.cancel)
        stopper.start()
        stopper.join()

    with pytest.raises(Cancelled):
        binding.generate_image("a heron", progress_callback=tell)
    assert binding.generate_image("a heron") == before


def test_an_unloaded_model_comes_back_by_itself(runtime: Runtime) -> None:
    binding = client().tti
    first = binding.generate_image("a heron")
    assert binding.get_loaded_models() == ["tiny-sd"] and binding.has_active_resources()
    assert binding.unload_model()
    assert binding.get_loaded_models() == [] and not binding.ps()
    assert binding.generate_image("a heron") == first


def test_two_clients_share_one_copy(runtime: Runtime) -> None:
    one, two = client(), client()
    assert one.generate_image("a heron") == two.generate_image("a heron")
    assert len(runtime.manager.snapshot()) == 1


def test_settings_change_the_next_picture_without_a_reload(runtime: Runtime) -> None:
    binding = client().tti
    binding.generate_image("a heron")
    before = runtime.manager.snapshot()[0]
    assert binding.set_settings([{"name": "width", "value": "32"}, {"name": "guidance", "value": "0"}])
    assert binding.get_settings()["width"] == 32 and binding.get_settings()["guidance"] == 0.0
    assert size(binding.generate_image("a heron", height=40)) == (32, 40)
    after = runtime.manager.snapshot()[0]
    assert (after.key, len(runtime.manager.snapshot())) == (before.key, 1) and after.uses > before.uses
    assert not binding.set_settings({"steps": "many"}) and "steps" in binding.get_last_error()


def test_models_and_services_are_listed(runtime: Runtime) -> None:
    binding = client().tti
    names = [row["model_name"] for row in binding.list_models()]
    assert {"tiny-sd", "tiny-flux"} <= set(names)
    assert binding.list_services()[0]["name"] == "local"


def test_a_model_may_be_named_in_the_call(runtime: Runtime) -> None:
    made = client().generate_image("a heron", model="tiny-flux", width=32, height=32)
    assert read_recipe(made).model == "tiny-flux"


# --- bad input: one clear sentence, nothing loaded --------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of 40000 x 40000 pixels in a few kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (40000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 40001))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("images", "mask"),
    [
        (bomb(), None),
        (png(photo())[:400], None),
        (b"", None),
        ("no such file.png", None),
        ("https://example.org/picture.png", None),
        (photo(), photo(20, 20)),
        (None, photo()),
        ([photo(), b"rubbish"], None),
    ],
    ids=["bomb", "truncated", "empty", "missing", "url", "mask of another size", "mask alone", "second damaged"],
)
def test_a_bad_picture_is_refused_before_anything_is_loaded(runtime: Runtime, images: Any, mask: Any) -> None:
    binding = client().tti
    assert binding.unload_model()
    with pytest.raises(MediaError) as refusal:
        binding.edit_image(images, "a cat", mask=mask)
    assert refusal.value.message.count(". ") == 0 and refusal.value.message.endswith(".")
    assert binding.get_loaded_models() == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"size": "large"}, "size"),
        ({"steps": "-4"}, "steps"),
        ({"width": "100000"}, "width"),
        ({"scheduler": "warp"}, "warp"),
        ({"loras": '["nothing:0.5"]'}, "nothing"),
        ({"n": 1000, "strength": 7}, "strength"),
    ],
)
def test_a_bad_option_is_named(runtime: Runtime, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedRequest, match=words):
        client().generate_image("a heron", **asked)


def test_a_damaged_model_leaves_the_client_standing_and_the_reason_readable(
    runtime: Runtime, models: Path, tmp_path: Path
) -> None:
    broken = image_models.copy("sd", models / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    binding = client("broken").tti
    assert binding is not None and "damaged" in binding.get_last_error()
    with pytest.raises(LoadError, match="damaged"):
        binding.generate_image("a heron")


def test_errors_as_dictionaries_when_the_user_wants_them(runtime: Runtime) -> None:
    answer: Any = client(error_mode="dict").generate_image("a heron", size="large")
    assert answer["status"] == "error" and "size" in answer["message"] and answer["hint"]


def test_a_refusal_carries_a_hint_that_works(runtime: Runtime) -> None:
    with pytest.raises(LocalModelError) as refusal:
        client().generate_image("a heron", scheduler="flow_euler")
    name = refusal.value.hint.split(": ", 1)[1].split(",")[0]
    assert size(client().generate_image("a heron", scheduler=name)) == (64, 64)
