"""The real video engine on tiny pipelines of every kind: pixels of the plain pipeline, cancel, seeds, decoding."""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lollms_local.catalog import ModelSpec
from lollms_local.devices import select_device
from lollms_local.engines import _video_decode, _video_open
from lollms_local.engines.diffusers_video import DiffusersVideo
from lollms_local.errors import (
    Cancelled,
    EngineNotInstalled,
    GenerationError,
    LoadError,
    ModelNotDownloaded,
    UnsupportedRequest,
)
from lollms_local.media import to_uint8
from lollms_local.modalities.base import Control, Progress
from lollms_local.modalities.video import Video, VideoLoadOptions, VideoOptions
from tests.tiny import video as tiny

ROOM = 8 << 30
TEXT = [name for name in tiny.FAMILIES if not name.endswith("_i2v")]
PICTURE = ["wan_i2v", "wan_ti2v", "ltx", "cogvideox_i2v"]
#: size that every family makes as it is, and a legal count of frames
ASKED = {"width": 32, "height": 32, "num_frames": 9, "steps": 2, "seed": 7, "guidance": 3.0, "fps": 8}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks this small only get slower with more."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline, built once."""
    root, made = tmp_path_factory.mktemp("video"), {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tiny.save(tiny.FAMILIES[family](), root / family)
        return made[family]

    return get


def load(path: Path, *, defaults: dict[str, Any] | None = None, **options: Any) -> DiffusersVideo:
    spec = ModelSpec(
        id=path.name, modality="ttv", engine="diffusers_video", source=f"path:{path}", defaults=defaults or {}
    )
    device = select_device("cpu")
    how = VideoLoadOptions.merge({"dtype": "float32", **options}, spec.defaults)
    return DiffusersVideo.load(spec, path, device, how, DiffusersVideo.footprint(spec, path, device, how, ROOM))


@contextlib.contextmanager
def loaded(path: Path, **options: Any) -> Iterator[DiffusersVideo]:
    engine = load(path, **options)
    try:
        yield engine
    finally:
        engine.close()


def make(
    engine: DiffusersVideo, *, control: Control | None = None, image: Any = None, prompt: str = "a heron", **asked: Any
) -> Video:
    return engine.generate(prompt, VideoOptions.merge({**ASKED, **asked}), control or Control(), image=image)


def picture(width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain_frames(path: Path, *, image: Any = None, cls: str = "", **call: Any) -> np.ndarray:
    """What diffusers alone makes of the same request."""
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(str(path), dtype=torch.float32)
    if cls:
        own = {n: pipe.config[n] for n in ("expand_timesteps", "boundary_ratio") if n in pipe.config}
        pipe = getattr(diffusers, cls)(**pipe.components, **own)
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {
        "prompt": "a heron",
        "num_frames": 9,
        "width": 32,
        "height": 32,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "generator": torch.Generator("cpu").manual_seed(7),
        "output_type": "np",
        **call,
    }
    known = inspect.signature(pipe.__call__).parameters
    arguments.update({n: v for n, v in {"frame_rate": 8, "image": image}.items() if n in known and v is not None})
    if path.name.startswith("cogvideox"):
        arguments["max_sequence_length"] = 16
    if path.name == "ltx_timestep":
        arguments.update(decode_timestep=0.05, decode_noise_scale=0.025)
    return to_uint8(np.asarray(pipe(**arguments).frames)[0])


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEXT)
def test_text_to_video_is_the_plain_pipelines_film_to_the_bit(family: str, folder: Callable[[str], Path]) -> None:
    with loaded(folder(family)) as engine:
        film = make(engine, negative_prompt="fog")
        assert film.frames.shape == (9, 32, 32, 3) and film.frames.dtype == np.uint8
        assert film.frames.std() > 5
        np.testing.assert_array_equal(film.frames, plain_frames(folder(family), negative_prompt="fog"))


@pytest.mark.parametrize("family", PICTURE)
def test_image_to_video_is_the_plain_pipelines_film_to_the_bit(family: str, folder: Callable[[str], Path]) -> None:
    cls = {"ltx": "LTXImageToVideoPipeline", "wan_ti2v": "WanImageToVideoPipeline"}.get(family, "")
    with loaded(folder(family)) as engine:
        assert "image" in engine.tasks()
        film = make(engine, image=picture())
        np.testing.assert_array_equal(film.frames, plain_frames(folder(family), image=picture(), cls=cls))
        assert (film.frames != make(engine, image=picture(64, 32)).frames).any(), "the picture must matter"


@pytest.mark.parametrize("family", ["ltx", "wan_ti2v"])
def test_a_picture_uses_the_weights_that_are_there(family: str, folder: Callable[[str], Path]) -> None:
    from lollms_local.engines._diffusers import measured_bytes

    with loaded(folder(family)) as engine:
        before = make(engine)
        make(engine, image=picture())
        assert measured_bytes(engine._pipe, engine._from_image) == measured_bytes(engine._pipe)
        np.testing.assert_array_equal(make(engine).frames, before.frames)


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox", "animatediff", "text_to_video_sd"])
def test_any_count_of_frames_is_given_exactly(family: str, folder: Callable[[str], Path]) -> None:
    with loaded(folder(family)) as engine:
        for count in (1, 6):
            film = make(engine, num_frames=count, steps=1)
            assert len(film.frames) == count
        film = make(engine, num_frames=0, duration=1.1, fps=10, steps=1)
        assert len(film.frames) == 11 and film.duration_s == 1.1


def test_trimmed_frames_are_the_first_ones_of_the_longer_film(folder: Callable[[str], Path]) -> None:
    with loaded(folder("wan")) as engine:
        np.testing.assert_array_equal(make(engine, num_frames=6).frames, make(engine, num_frames=9).frames[:6])


def test_sizes_are_rounded_with_a_note(folder: Callable[[str], Path]) -> None:
    with loaded(folder("wan")) as engine:
        film = make(engine, width=45, height=33, steps=1, num_frames=1)
        assert film.frames.shape == (1, 32, 48, 3)
        assert any("45x33 became 48x32" in note for note in film.notes)


def test_the_two_halves_of_wan_2_2_have_guidances_of_their_own(folder: Callable[[str], Path]) -> None:
    with loaded(folder("wan22")) as engine:
        assert (make(engine, guidance_2=9.0).frames != make(engine).frames).any()
        np.testing.assert_array_equal(
            make(engine, guidance_2=9.0).frames, plain_frames(folder("wan22"), guidance_scale_2=9.0)
        )
    with loaded(folder("wan")) as engine:
        assert any("guidance_2" in note for note in make(engine, guidance_2=9.0, steps=1).notes)


# --- seeds, settings ------------------------------------------------------------------------------------------------


def test_a_seed_makes_the_same_film_and_no_seed_another_one_each_time(folder: Callable[[str], Path]) -> None:
    with loaded(folder("ltx")) as engine:
        first, second = make(engine, seed=-1), make(engine, seed=-1)
        assert first.seed != second.seed and (first.frames != second.frames).any()
        np.testing.assert_array_equal(make(engine, seed=first.seed).frames, first.frames)


def test_guidance_zero_stays_zero(folder: Callable[[str], Path]) -> None:
    with loaded(folder("cogvideox")) as engine:
        np.testing.assert_array_equal(
            make(engine, guidance=0).frames, plain_frames(folder("cogvideox"), guidance_scale=0.0)
        )


def test_the_models_catalogue_settings_are_used_where_nothing_is_said(folder: Callable[[str], Path]) -> None:
    defaults = {"steps": 3, "guidance": 2.0, "negative_prompt": "blur", "width": 32, "height": 32, "num_frames": 9}
    seen: list[Progress] = []
    with loaded(folder("wan"), defaults=defaults) as engine:
        film = engine.generate("a heron", VideoOptions.merge({"seed": 7}), Control(on_progress=seen.append))
    expected = plain_frames(folder("wan"), num_inference_steps=3, guidance_scale=2.0, negative_prompt="blur")
    np.testing.assert_array_equal(film.frames, expected)
    assert film.recipe["negative_prompt"] == "blur" and film.recipe["steps"] == 3


def test_a_scheduler_by_name_is_used_and_an_unfit_one_is_refused(folder: Callable[[str], Path]) -> None:
    with loaded(folder("animatediff")) as engine:
        assert (make(engine, scheduler="euler_a").frames != make(engine).frames).any()
        with pytest.raises(UnsupportedRequest, match="flow_euler"):
            make(engine, scheduler="flow_euler")


def test_a_prompt_that_is_longer_than_the_model_reads_is_told(folder: Callable[[str], Path]) -> None:
    with loaded(folder("animatediff")) as engine:
        assert any("reads the first 77" in note for note in make(engine, steps=1, prompt="ab " * 90).notes)
        assert not any("reads" in note for note in make(engine, steps=1).notes)


# --- progress, cancel, threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wan22", "ltx", "cogvideox", "animatediff", "text_to_video_sd"])
def test_progress_counts_every_step_and_then_the_decoding(family: str, folder: Callable[[str], Path]) -> None:
    seen: list[Progress] = []
    with loaded(folder(family)) as engine:
        make(engine, steps=3, control=Control(on_progress=seen.append))
    assert [(p.done, p.total) for p in seen if p.stage == "denoise"] == [(1, 3), (2, 3), (3, 3)]
    decode = [p for p in seen if p.stage == "decode"]
    assert [p.done for p in decode] == list(range(len(decode)))
    assert {p.total for p in decode} == {len(decode)}
    assert seen.index(decode[0]) > seen.index([p for p in seen if p.stage == "denoise"][-1])


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox", "animatediff", "text_to_video_sd"])
def test_a_job_stopped_anywhere_leaves_the_model_right_for_the_next(family: str, folder: Callable[[str], Path]) -> None:
    with loaded(folder(family)) as engine:
        short = {"num_frames": 1, "steps": 1} if family == "animatediff" else {}
        before = make(engine, **short)
        polls = 0

        def stop_at(limit: int) -> Control:
            nonlocal polls
            polls = 0

            def cancelled() -> bool:
                nonlocal polls
                polls += 1
                return polls > limit

            return Control(cancelled=cancelled)

        make(engine, control=stop_at(10**9), **short)
        total = polls
        assert total > 20, "a job asks often"
        for limit in (0, total // 3, total - 2):  # text encoder, denoiser, decoder
            with pytest.raises(Cancelled):
                make(engine, control=stop_at(limit), **short)
        np.testing.assert_array_equal(make(engine, **short).frames, before.frames)


def test_what_the_progress_function_raises_comes_out_unchanged(folder: Callable[[str], Path]) -> None:
    class Enough(Exception):
        pass

    def tell(progress: Progress) -> None:
        if progress.stage == "decode":
            raise Enough

    with loaded(folder("wan")) as engine, pytest.raises(Enough):
        make(engine, control=Control(on_progress=tell))


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox", "text_to_video_sd"])
def test_jobs_side_by_side_make_what_each_makes_alone(family: str, folder: Callable[[str], Path]) -> None:
    with loaded(folder(family)) as engine:
        alone = {seed: make(engine, seed=seed).frames for seed in (1, 2)}
        together: dict[int, Any] = {}

        def work(seed: int) -> None:
            together[seed] = make(engine, seed=seed).frames

        threads = [threading.Thread(target=work, args=(seed,)) for seed in alone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for seed, frames in alone.items():
            np.testing.assert_array_equal(together[seed], frames)


# --- decoding in little memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wan", "cogvideox", "animatediff", "text_to_video_sd"])
def test_decoding_in_chunks_gives_the_same_film(family: str, folder: Callable[[str], Path]) -> None:
    with loaded(folder(family)) as engine:
        whole = make(engine, num_frames=17).frames
    with loaded(folder(family), vae_chunks="on") as engine:
        chunks = make(engine, num_frames=17)
    assert np.abs(chunks.frames.astype(int) - whole.astype(int)).max() <= 1
    assert any("few at a time" in note for note in chunks.notes)


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox", "text_to_video_sd"])
def test_the_decoder_never_sees_more_frames_at_once_in_a_longer_film(
    family: str, folder: Callable[[str], Path]
) -> None:
    with loaded(folder(family), vae_chunks="on") as engine:
        seen: list[int] = []

        def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            sample = output[0] if isinstance(output, tuple) else output
            seen.append(int(sample.numel()))

        handle = engine._pipe.vae.decoder.register_forward_hook(look, with_kwargs=True)
        make(engine, num_frames=17, steps=1)
        short = max(seen)
        seen.clear()
        film = make(engine, num_frames=33, steps=1)
        handle.remove()
        assert len(film.frames) == 33
        assert max(seen) <= short


def test_decoding_in_tiles_covers_the_whole_frame(folder: Callable[[str], Path], monkeypatch: Any) -> None:
    from diffusers import AutoencoderKLWan

    plain = AutoencoderKLWan.enable_tiling
    small = lambda self: plain(self, 48, 48, 32, 32)  # noqa: E731  # a tiny film has no more than a tile otherwise
    with loaded(folder("wan")) as engine:
        whole = make(engine, width=96, height=64).frames
    monkeypatch.setattr(AutoencoderKLWan, "enable_tiling", small)
    with loaded(folder("wan"), vae_tiling="on") as engine:
        tiles = make(engine, width=96, height=64)
        assert not engine._pipe.vae.use_tiling, "the switch belongs to the job"
    assert tiles.frames.shape == whole.shape
    assert np.abs(tiles.frames.astype(int) - whole.astype(int)).mean() < 12
    assert any("tiles" in note for note in tiles.notes)


def test_long_films_are_decoded_in_chunks_by_themselves(folder: Callable[[str], Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("lollms_local.engines.diffusers_video._LEAST_DECODE_BYTES", 1 << 20)
    with loaded(folder("ltx"), defaults={"width": 32, "height": 32, "num_frames": 9}) as engine:
        assert not any("few at a time" in note for note in make(engine, num_frames=9, steps=1).notes)
        room = engine._decode_room_bytes
        side = 256
        frames = 9
        while _video_decode.decode_bytes(engine._rules, side, side, frames, 4, "whole") <= room:
            frames += 8
        assert frames < 200
        film = make(engine, width=side, height=side, num_frames=frames, steps=1)
        assert len(film.frames) == frames
        assert any("to save memory" in note for note in film.notes)


def test_frames_that_are_not_numbers_are_an_error_not_a_black_film(folder: Callable[[str], Path]) -> None:
    import torch

    with loaded(folder("wan")) as engine:
        with torch.no_grad():
            engine._pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
        with pytest.raises(GenerationError, match="not numbers"):
            make(engine)


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_motion_adapter_animates_a_stable_diffusion_beside_it(folder: Callable[[str], Path], tmp_path: Path) -> None:
    tiny.motion_adapter().save_pretrained(tmp_path / "adapter")
    tiny.save(tiny.stable_diffusion_base(), tmp_path / "sd-base")
    with pytest.raises(LoadError, match="base_model"):
        load(tmp_path / "adapter")
    with pytest.raises(ModelNotDownloaded, match="lollms-local models download sd-other"):
        load(tmp_path / "adapter", base_model="sd-other")
    with pytest.raises(LoadError, match="animates Stable Diffusion"):
        load(tmp_path / "adapter", base_model=str(folder("wan")))
    with loaded(tmp_path / "adapter", base_model="sd-base") as engine:
        film = make(engine)
        with pytest.raises(UnsupportedRequest, match="at most 32"):
            make(engine, num_frames=33)
    import diffusers
    import torch

    base = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd-base", dtype=torch.float32)
    adapter = diffusers.MotionAdapter.from_pretrained(tmp_path / "adapter")
    scheduler = diffusers.DDIMScheduler.from_config(
        base.scheduler.config, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", steps_offset=1
    )
    pipe = diffusers.AnimateDiffPipeline(base.vae, base.text_encoder, base.tokenizer, base.unet, adapter, scheduler)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        prompt="a heron",
        num_frames=9,
        width=32,
        height=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).frames
    np.testing.assert_array_equal(film.frames, to_uint8(np.asarray(frames)[0]))


@pytest.mark.parametrize("family", ["wan22", "wan_i2v", "animatediff"])
def test_the_footprint_is_what_the_weights_take(family: str, folder: Callable[[str], Path]) -> None:
    from lollms_local.engines._diffusers import measured_bytes

    path, device, options = folder(family), select_device("cpu"), VideoLoadOptions(dtype="float32")
    spec = ModelSpec(id=family, modality="ttv", engine="diffusers_video", source=f"path:{path}")
    footprint = DiffusersVideo.footprint(spec, path, device, options, ROOM)
    with loaded(path) as engine:
        measured = measured_bytes(engine._pipe)
    assert footprint.weights_bytes <= measured <= footprint.weights_bytes + 40_000  # buffers that no file holds
    assert footprint.workspace_bytes > 0 and "float32" in footprint.reason


def test_a_closed_model_is_gone(folder: Callable[[str], Path]) -> None:
    engine = load(folder("ltx"))
    make(engine, steps=1)
    make(engine, steps=1, image=picture())
    watched = [weakref.ref(engine._pipe.transformer), weakref.ref(engine._pipe.vae)]
    engine.close()
    engine.close()
    gc.collect()
    assert [ref() for ref in watched] == [None, None]


def test_what_a_model_can_start_from_is_known_without_loading_it(folder: Callable[[str], Path]) -> None:
    def able(family: str) -> tuple[str, ...]:
        return DiffusersVideo.abilities(folder(family), VideoLoadOptions())

    assert able("wan") == able("cogvideox") == able("animatediff") == ("text",)
    assert able("ltx") == able("wan_ti2v") == ("text", "image")
    assert able("wan_i2v") == able("cogvideox_i2v") == ("image",)


def test_a_model_says_what_it_cannot_do(folder: Callable[[str], Path]) -> None:
    with loaded(folder("cogvideox")) as engine, pytest.raises(UnsupportedRequest, match="cannot start from a picture"):
        make(engine, image=picture())
    with loaded(folder("wan_i2v")) as engine, pytest.raises(UnsupportedRequest, match="needs a first picture"):
        make(engine)


def test_a_missing_ftfy_is_told_before_the_load(folder: Callable[[str], Path], monkeypatch: Any) -> None:
    find = _video_open.importlib.util.find_spec
    monkeypatch.setattr(_video_open.importlib.util, "find_spec", lambda n: None if n == "ftfy" else find(n))
    with pytest.raises(EngineNotInstalled, match="pip install ftfy"):
        DiffusersVideo.abilities(folder("wan_i2v"), VideoLoadOptions())
    with loaded(folder("wan_ti2v")) as engine:
        make(engine, steps=1)
        with pytest.raises(EngineNotInstalled, match="pip install ftfy"):
            make(engine, image=picture())


def test_folders_that_are_no_video_model_are_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model_index\.json"):
        load(tmp_path)
    tiny.save(tiny.stable_diffusion_base(), tmp_path / "pictures")
    with pytest.raises(LoadError, match="no video pipeline"):
        load(tmp_path / "pictures")


@pytest.mark.parametrize("placement", ["model_offload", "group_offload"])
@pytest.mark.parametrize("family", ["wan22", "ltx"])
def test_offloading_makes_the_same_film_and_outlives_a_cancelled_job(
    family: str, placement: Any, folder: Callable[[str], Path]
) -> None:
    """Run with the CPU as the device that parts are moved to: the same hooks as on a GPU."""
    path, device, options = folder(family), select_device("cpu"), VideoLoadOptions(dtype="float32")
    spec = ModelSpec(id=family, modality="ttv", engine="diffusers_video", source=f"path:{path}")
    footprint = DiffusersVideo.footprint(spec, path, device, options, ROOM)
    plan, files = footprint.placement
    moved = replace(footprint, placement=(replace(plan, placement=placement), files))
    with loaded(path) as engine:
        still, animated = make(engine).frames, make(engine, image=picture()).frames if family == "ltx" else None
    engine = DiffusersVideo.load(spec, path, device, options, moved)
    with pytest.raises(Cancelled):
        make(engine, control=Control(cancelled=lambda: True))
    # moved weights lie at other addresses, and the CPU's kernels may round one level differently there
    for _ in range(2):
        np.testing.assert_allclose(make(engine).frames.astype(int), still.astype(int), atol=1)
    if animated is not None:
        np.testing.assert_allclose(make(engine, image=picture()).frames.astype(int), animated.astype(int), atol=1)
    engine.close()
