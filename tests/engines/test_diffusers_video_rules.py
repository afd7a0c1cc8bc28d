"""What a film request becomes, by family: frame counts, sizes, drafts. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lollms_local.engines._video_decode import choose_decoding, decode_bytes
from lollms_local.engines._video_families import VideoRules, rules_for
from lollms_local.engines._video_request import DRAFT_PIXELS, plan_film
from lollms_local.errors import LoadError, UnsupportedRequest
from lollms_local.modalities.video import VideoOptions


def rules(class_name: str, **configs: Mapping[str, Any]) -> VideoRules:
    return rules_for(
        class_name, lambda name: configs.get(name or "index", {"_class_name": class_name} if not name else {})
    )


WAN, LTX, COG = rules("WanPipeline"), rules("LTXPipeline"), rules("CogVideoXPipeline")
ANIMATEDIFF, MODELSCOPE = rules("AnimateDiffPipeline"), rules("TextToVideoSDPipeline")
TI2V = rules(
    "WanPipeline",
    index={"_class_name": "WanPipeline", "expand_timesteps": True},
    vae={"scale_factor_spatial": 16, "patch_size": 2, "base_dim": 160, "decoder_base_dim": 256},
)
FAMILIES = (WAN, TI2V, LTX, COG, ANIMATEDIFF, MODELSCOPE)


def film(model: VideoRules, *, on_cpu: bool = False, defaults: Mapping[str, Any] | None = None, **asked: Any) -> Any:
    return plan_film(model, VideoOptions.merge(asked), defaults or {}, on_cpu=on_cpu)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda m: m.family)
def test_the_film_has_exactly_the_frames_that_its_duration_asks_for(model: VideoRules) -> None:
    for duration in (0.1, 0.5, 1, 1.37, 2, 3.21):
        for fps in (6, 8, 9.5):
            request = film(model, duration=duration, fps=fps)
            assert request.keep_frames == max(1, round(duration * fps))
            assert request.fps == fps


@pytest.mark.parametrize(
    ("model", "step"), [(WAN, 4), (TI2V, 4), (LTX, 8), (COG, 8), (ANIMATEDIFF, 1), (MODELSCOPE, 1)]
)
def test_the_pipeline_is_asked_for_the_smallest_count_it_can_make(model: VideoRules, step: int) -> None:
    for wanted in range(1, 33):
        asked = film(model, num_frames=wanted).ask_frames
        assert asked >= wanted
        assert (asked - 1) % step == 0
        assert asked - wanted < step


def test_trimmed_frames_are_told() -> None:
    assert any("49 frames; the first 45" in note for note in film(COG, num_frames=45).notes)
    assert not film(COG, num_frames=49).notes


@pytest.mark.parametrize(("model", "multiple"), [(WAN, 16), (TI2V, 32), (LTX, 32), (COG, 16), (ANIMATEDIFF, 8)])
def test_sizes_are_rounded_to_what_the_family_makes_and_the_change_is_told(model: VideoRules, multiple: int) -> None:
    for width, height in ((511, 253), (1, 1), (833, 481), (640, 360)):
        request = film(model, width=width, height=height)
        assert request.width % multiple == 0 and request.height % multiple == 0
        assert request.width % 2 == 0 and request.height % 2 == 0
        assert abs(request.width - width) <= multiple and abs(request.height - height) <= multiple
        changed = (request.width, request.height) != (width, height)
        assert any(f"{width}x{height}" in note for note in request.notes) == changed


def test_a_model_with_learned_positions_keeps_its_size_and_length() -> None:
    model = rules("CogVideoXImageToVideoPipeline", transformer={"use_learned_positional_embeddings": True})
    request = film(model, width=512, height=512)
    assert (request.width, request.height) == (720, 480)
    assert any("no other size" in note for note in request.notes)
    with pytest.raises(UnsupportedRequest, match="at most 49 frames"):
        film(model, num_frames=50)


def test_one_side_alone_keeps_the_shape() -> None:
    request = film(WAN, width=416)
    assert (request.width, request.height) == (416, 240)


def test_the_film_takes_the_shape_of_its_first_picture() -> None:
    request = plan_film(LTX, VideoOptions(), {}, on_cpu=False, picture_size=(1000, 1000))
    assert request.width == request.height
    assert request.width * request.height == pytest.approx(704 * 480, rel=0.1)


def test_what_the_host_spells_as_text_or_leaves_out_is_understood() -> None:
    request = film(
        WAN,
        duration="5",
        fps="16",
        width=None,
        height="None",
        size="512x768",
        guidance_scale="0",
        num_inference_steps="7",
    )
    assert (request.keep_frames, request.fps, request.width, request.height) == (80, 16.0, 512, 768)
    assert (request.guidance, request.steps) == (0.0, 7)


def test_full_defaults_are_the_familys_and_the_catalogue_wins_over_them() -> None:
    request = film(WAN)
    assert (request.width, request.height, request.keep_frames, request.fps) == (832, 480, 81, 16.0)
    assert (request.steps, request.guidance) == (50, 5.0)
    request = film(WAN, defaults={"steps": 30, "width": 480, "height": 480, "guidance": 0, "duration": 2})
    assert (request.steps, request.width, request.guidance, request.keep_frames) == (30, 480, 0.0, 32)
    assert film(WAN, defaults={"steps": 30}, steps=4).steps == 4


@pytest.mark.parametrize("model", FAMILIES, ids=lambda m: m.family)
def test_a_cpu_makes_a_draft_unless_told_otherwise(model: VideoRules) -> None:
    request = film(model, on_cpu=True, defaults={"steps": 50, "num_frames": 81 if model.frame_step > 1 else 16})
    assert request.steps <= 12 and request.fps <= 8 and request.keep_frames <= 17
    assert request.width * request.height <= DRAFT_PIXELS * 1.3
    assert any('quality="full"' in note for note in request.notes)
    said = film(model, on_cpu=True, steps=40, fps=12, width=512, height=512, num_frames=25)
    assert (said.steps, said.fps, said.width, said.height, said.keep_frames) == (40, 12.0, 512, 512, 25)
    assert not any("draft" in note for note in said.notes)
    assert film(model, on_cpu=True, quality="full").steps == model.steps


def test_the_hosts_usual_five_seconds_are_five_seconds_on_a_cpu_too() -> None:
    request = film(WAN, on_cpu=True, duration=5)
    assert request.keep_frames / request.fps == 5
    assert request.keep_frames == 40


def test_a_long_film_from_a_short_model_runs_slower_or_is_refused() -> None:
    request = film(ANIMATEDIFF, duration=5)
    assert request.keep_frames == 32 and request.keep_frames / request.fps == pytest.approx(5)
    assert any("at most 32 frames" in note for note in request.notes)
    with pytest.raises(UnsupportedRequest, match="at most 32 frames"):
        film(ANIMATEDIFF, duration=5, fps=8)
    with pytest.raises(UnsupportedRequest, match="at most 32 frames"):
        film(ANIMATEDIFF, duration=60)


def test_what_cannot_be_held_in_memory_is_refused_before_any_work() -> None:
    with pytest.raises(UnsupportedRequest, match="too many to hold"):
        film(LTX, num_frames=9000, width=1024, height=1024)
    with pytest.raises(UnsupportedRequest, match="size"):
        film(WAN, size="large")
    with pytest.raises(UnsupportedRequest, match="duration"):
        film(WAN, duration=-3)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda m: m.family)
def test_decoding_in_chunks_takes_memory_that_does_not_grow_with_the_film(model: VideoRules) -> None:
    frames = model.legal_frames(25), model.legal_frames(250)
    short, long = (decode_bytes(model, 512, 512, n, 2, "chunks") for n in frames)
    assert short == long
    assert decode_bytes(model, 512, 512, frames[0], 2, "tiles") <= short


def test_the_way_to_decode_is_the_first_that_fits() -> None:
    def way(room: int, chunks: str = "auto", tiling: str = "auto") -> str:
        return choose_decoding(LTX, 1024, 1024, 97, 2, room, chunks=chunks, tiling=tiling)

    whole, chunks = (decode_bytes(LTX, 1024, 1024, 97, 2, mode) for mode in ("whole", "chunks"))
    assert way(whole) == "whole"
    assert way(whole - 1) == "chunks"
    assert way(chunks - 1) == "tiles"
    assert way(0) == "tiles"
    assert way(whole, chunks="on") == "chunks"
    assert way(0, tiling="off") == "chunks"
    assert way(0, chunks="off", tiling="off") == "whole"
    assert way(whole, tiling="on") == "tiles"


def test_an_unknown_pipeline_and_a_damaged_configuration_are_load_errors() -> None:
    with pytest.raises(LoadError, match="no video pipeline"):
        rules("StableDiffusionPipeline")
    with pytest.raises(LoadError, match="damaged"):
        rules("WanPipeline", transformer={"patch_size": 7})
