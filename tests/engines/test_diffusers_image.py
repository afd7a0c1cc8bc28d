"""The picture engine against the plain pipelines: what comes out, to the bit."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lollms_local.errors import Cancelled, UnsupportedRequest
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.image import ImageOptions, read_edit_input
from tests.tiny.diffusion import FAMILIES
from tests.tiny.image_models import load, loaded, make, pixels, plain

ALL = tuple(FAMILIES)
# the schedulers of diffusers use numpy in ways that numpy 2 discourages
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """More threads cost more than they bring on networks this small, and make the summing order vary."""
    import torch

    before = torch.get_num_threads()
    for family in ALL:
        loaded(family)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(width: int = 50, height: int = 37) -> Image.Image:
    """A picture of noise, with sides that no model makes."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def marked(width: int = 50, height: int = 37) -> tuple[Image.Image, Any]:
    mask = np.zeros((height, width), np.uint8)
    mask[5:20, 10:30] = 255
    return Image.fromarray(mask), mask > 0


@pytest.mark.parametrize("family", ALL)
def test_text_to_image_equals_the_plain_pipeline_to_the_bit(family: str) -> None:
    import torch

    pipe = plain(family)
    generator = torch.Generator("cpu").manual_seed(7)
    expected = pipe(prompt="a heron", num_inference_steps=3, width=32, height=64, generator=generator).images[0]
    made = pixels(loaded(family), steps=3, width=32, height=64, seed=7)
    assert np.array_equal(made, np.asarray(expected))
    assert made.std() > 5


@pytest.mark.parametrize("family", ALL)
def test_image_to_image_equals_the_plain_pipeline_to_the_bit(family: str) -> None:
    import torch
    from diffusers import AutoPipelineForImage2Image

    source = photo(32, 64)
    pipe = AutoPipelineForImage2Image.from_pipe(plain(family))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    # width and height are no arguments of every image-to-image pipeline: the source's size counts
    expected = pipe(prompt="a cat", image=source, strength=0.7, num_inference_steps=4, generator=generator, **(
        {} if family in ("sd", "sdxl") else {"width": 32, "height": 64}
    )).images[0]  # fmt: skip
    made = make(loaded(family), "a cat", edit=read_edit_input(source), width=0, height=0, strength=0.7, steps=4, seed=7)
    assert made.recipe["task"] == "image"
    assert np.array_equal(made.images[0].pixels, np.asarray(expected))


@pytest.mark.parametrize("family", ALL)
def test_inpainting_changes_the_mask_and_not_one_pixel_besides(family: str) -> None:
    source, (mask, inside) = photo(), marked()
    made = pixels(loaded(family), "a cat", edit=read_edit_input(source, mask), width=0, height=0, strength=0.9, steps=3)
    assert made.shape == (37, 50, 3)
    assert np.array_equal(made[~inside], np.asarray(source)[~inside])
    assert (made[inside] != np.asarray(source)[inside]).mean() > 0.5


@pytest.mark.parametrize("family", ALL)
def test_all_tasks_share_one_set_of_weights(family: str) -> None:
    from lollms_local.engines._diffusers import measured_bytes, modules_of

    model = loaded(family)
    pipes = [model._tasks.get(task) for task in ("text", "image", "inpaint")]
    assert model.tasks() == ("text", "image", "inpaint")
    assert measured_bytes(*pipes) == measured_bytes(pipes[0]) > 100_000
    assert all(modules_of(pipe)["vae"] is modules_of(pipes[0])["vae"] for pipe in pipes)


@pytest.mark.parametrize("family", ALL)
def test_four_threads_on_one_model_each_get_the_picture_they_get_alone(family: str) -> None:
    model = loaded(family)
    sizes = [32, 40, 48, 64]
    alone = [pixels(model, f"number {k}", width=w, seed=k, steps=3) for k, w in enumerate(sizes)]
    together: dict[int, list[Any]] = {}

    def work(k: int) -> None:
        together[k] = [pixels(model, f"number {k}", width=sizes[k], seed=k, steps=3) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, expected in enumerate(alone):
        assert all(np.array_equal(expected, made) for made in together[k])


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("place", ["denoiser", "decoder"])
def test_a_stopped_job_leaves_the_model_right_for_the_next(family: str, place: str) -> None:
    model = loaded(family)
    before = pixels(model, steps=3)
    seen: list[Progress] = []

    def stop() -> bool:
        finished = bool(seen) and seen[-1].done == seen[-1].total
        return finished if place == "decoder" else len(seen) == 1

    decoded: list[bool] = []
    watch = model._pipe.vae.decoder.conv_out.register_forward_hook(lambda *_: decoded.append(True))
    with pytest.raises(Cancelled):
        make(model, steps=3, control=Control(stop, seen.append))
    watch.remove()
    # within the step after the one that was reported, or within the decoding
    assert len(seen) == (1 if place == "denoiser" else seen[-1].total)
    assert not decoded
    assert np.array_equal(before, pixels(model, steps=3))


def test_what_the_progress_function_raises_reaches_the_caller_unchanged() -> None:
    class Mine(Exception):
        pass

    def tell(progress: Progress) -> None:
        raise Mine

    with pytest.raises(Mine):
        make(loaded("sd"), control=Control(on_progress=tell))


def test_progress_counts_what_the_scheduler_really_does() -> None:
    seen: list[Progress] = []
    make(loaded("sd"), steps=4, n=2, control=Control(on_progress=seen.append))
    assert [p.done for p in seen] == list(range(1, 11))  # PNDM runs five passes for four steps; two pictures
    assert {p.total for p in seen} == {10}


@pytest.mark.parametrize("family", ALL)
def test_a_preview_is_a_small_look_at_the_picture_that_comes(family: str) -> None:
    seen: list[Any] = []
    made = pixels(
        loaded(family), steps=4, width=64, height=32, preview_every=1,
        control=Control(on_progress=lambda p: seen.append(p.preview)),
    )  # fmt: skip
    looks = [look for look in seen if look is not None]
    assert looks and all(look.dtype == np.uint8 and look.ndim == 3 for look in looks)
    rows, columns, _ = looks[-1].shape
    assert columns == 2 * rows and rows < made.shape[0]


@pytest.mark.parametrize("family", ALL)
def test_pictures_of_one_call_are_those_of_their_seeds(family: str) -> None:
    model = loaded(family)
    result = make(model, n=3, seed=20)
    assert [image.seed for image in result.images] == [20, 21, 22]
    for image in result.images:
        assert np.array_equal(image.pixels, pixels(model, seed=image.seed))
    assert not np.array_equal(result.images[0].pixels, result.images[1].pixels)


def test_a_batch_differs_from_single_pictures_by_one_level_at_most() -> None:
    model = loaded("sd")
    batch = make(model, n=3, seed=20, batch_size=3)
    for image in batch.images:
        difference = image.pixels.astype(int) - pixels(model, seed=image.seed).astype(int)
        assert abs(difference).max() <= 1


def test_without_a_seed_every_call_draws_its_own_and_says_it() -> None:
    model = loaded("sd")
    first, second = make(model, seed=-1).images[0], make(model, seed=-1).images[0]
    assert first.seed != second.seed
    assert np.array_equal(first.pixels, pixels(model, seed=first.seed))


@pytest.mark.parametrize("family", ALL)
def test_sizes_that_the_model_cannot_make_are_rounded_and_said(family: str) -> None:
    result = make(loaded(family), width=37, height=61)
    height, width, _ = result.images[0].pixels.shape
    assert abs(width - 37) <= 8 and abs(height - 61) <= 8
    assert (result.recipe["width"], result.recipe["height"]) == (width, height)
    assert result.notes and f"{width}x{height}" in result.notes[0]
    assert make(loaded(family), width=width, height=height).notes == ()


@pytest.mark.parametrize("family", ALL)
def test_an_edit_keeps_the_size_of_its_source_to_the_pixel(family: str) -> None:
    made = pixels(loaded(family), edit=read_edit_input(photo(43, 29)), width=0, height=0, strength=0.8)
    assert made.shape == (29, 43, 3)


def test_a_photo_is_worked_on_small_and_scaled_back() -> None:
    source, (mask, inside) = photo(140, 90), marked(140, 90)
    result = make(loaded("sd"), edit=read_edit_input(source, mask), width=0, height=0, steps=1)
    made = result.images[0].pixels
    assert made.shape == (90, 140, 3)
    assert np.array_equal(made[~inside], np.asarray(source)[~inside])
    assert any("scaled back" in note for note in result.notes)


def test_guidance_0_is_no_guidance_and_not_the_default() -> None:
    model = loaded("sd")
    without = pixels(model, guidance=0)
    assert np.array_equal(without, pixels(model, guidance=0, negative_prompt="water"))
    assert not np.array_equal(without, pixels(model))
    assert not np.array_equal(pixels(model), pixels(model, negative_prompt="water"))


def test_qwen_image_is_guided_by_what_users_call_guidance() -> None:
    model = loaded("qwenimage")
    plain_one = make(model, guidance=1.0)
    assert plain_one.notes == ()
    assert make(model, guidance=1.0, negative_prompt="x").notes != ()
    assert not np.array_equal(plain_one.images[0].pixels, pixels(model, guidance=30.0))


LONG = "a heron in the reeds, "


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_prompt_beyond_77_tokens_is_read_to_its_end(family: str) -> None:
    import torch

    model = loaded(family)
    text = LONG * 12
    result = make(model, text)
    assert "pieces" in result.notes[0]
    assert not np.array_equal(result.images[0].pixels, pixels(model, text + "and a red boat"))
    pipe = plain(family)
    cut = pipe(
        prompt=text, num_inference_steps=2, width=32, height=32, generator=torch.Generator("cpu").manual_seed(1)
    ).images[0]
    assert not np.array_equal(result.images[0].pixels, np.asarray(cut))


def test_the_pieces_of_a_long_prompt_are_the_plain_pipeline_s_own_embeddings() -> None:
    import torch

    from lollms_local.engines._image_prompt import prompt_arguments

    pipe = plain("sd")
    arguments, _ = prompt_arguments(pipe, ("x" * 75 + " ") + "y" * 10, None, clip_skip=0, guided=True)
    first, unwanted = pipe.encode_prompt("x" * 75, "cpu", 1, True)
    second, _ = pipe.encode_prompt("y" * 10, "cpu", 1, True)
    assert torch.allclose(arguments["prompt_embeds"], torch.cat([first, second], 1), atol=1e-5)
    assert torch.allclose(arguments["negative_prompt_embeds"], torch.cat([unwanted, unwanted], 1), atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_where_t5_reads_on_the_cut_of_clip_is_said(family: str) -> None:
    model = loaded(family)
    result = make(model, LONG * 12)
    assert "CLIP reads the first 75" in result.notes[0]
    assert not np.array_equal(result.images[0].pixels, pixels(model, LONG * 12 + "and a red boat"))


def test_a_very_long_prompt_says_how_much_the_model_reads() -> None:
    result = make(loaded("flux"), "heron " * 200)
    assert any("reads the first 512" in note for note in result.notes)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_clip_skip_leaves_layers_out(family: str) -> None:
    assert not np.array_equal(pixels(loaded(family)), pixels(loaded(family), clip_skip=1))


def test_clip_skip_on_a_model_without_it_is_said() -> None:
    result = make(loaded("zimage"), clip_skip=2)
    assert any("clip_skip" in note for note in result.notes)


@pytest.mark.parametrize(
    "name",
    ["ddim", "ddpm", "pndm", "euler", "Euler a", "euler_karras", "heun", "dpm2", "dpm2_a", "DPM++ 2M Karras",
     "dpmpp_2s", "dpmpp_2m_sde", "unipc", "deis", "lcm", "tcd", "sa_solver", "EulerDiscreteScheduler"],
)  # fmt: skip
def test_schedulers_by_their_common_names(name: str) -> None:
    model = loaded("sd")
    own = pixels(model, steps=4)
    made = make(model, steps=4, scheduler=name)
    assert made.images[0].pixels.std() > 5
    assert made.recipe["scheduler"] == name
    assert name == "pndm" or not np.array_equal(own, made.images[0].pixels)
    assert np.array_equal(own, pixels(model, steps=4))  # the choice was this job's alone


@pytest.mark.parametrize(("family", "name"), [("sd", "flow_euler"), ("flux", "euler"), ("sd", "no such")])
def test_a_scheduler_that_does_not_fit_is_refused_with_those_that_do(family: str, name: str) -> None:
    with pytest.raises(UnsupportedRequest, match="does not work with") as refusal:
        make(loaded(family), scheduler=name)
    assert ("flow_euler" if family == "flux" else "dpmpp_2m_karras") in refusal.value.hint


def test_a_low_strength_gets_the_steps_it_needs() -> None:
    result = make(loaded("sd"), edit=read_edit_input(photo(32, 32)), strength=0.25, steps=1)
    assert result.recipe["steps"] == 4
    assert any("At strength 0.25" in note for note in result.notes)


def test_several_sources_for_a_model_that_edits_one_are_refused() -> None:
    with pytest.raises(UnsupportedRequest, match="one picture at a time"):
        make(loaded("sd"), edit=read_edit_input([photo(), photo()]))


def test_a_network_in_another_number_format_works_with_the_rest() -> None:
    import torch

    from tests.tiny.image_models import folder

    model = load(folder("sd"), dtype="bfloat16", vae_dtype="float32", text_encoder_dtype="float32")
    pipe = model._pipe
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pixels(model).std() > 5
    assert pixels(model, edit=read_edit_input(photo(32, 32))).std() > 5


def test_options_take_the_host_s_spellings() -> None:
    options = ImageOptions.merge(
        {"num_inference_steps": "12", "guidance_scale": "False", "width": None, "height": "768", "seed": "True"},
        {"width": "640", "steps": 50},
    )
    assert (options.steps, options.guidance, options.width, options.height, options.seed) == (12, 0.0, 640, 768, 1)
