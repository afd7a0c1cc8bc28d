"""What speech and music models work in: each number here is derived by hand from the widths of a published model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lollms_local.devices import Device
from lollms_local.engines._audio_footprint import (
    GPU_FIXED_BYTES,
    bark_work,
    cache,
    codec_frames,
    codec_phases,
    gpu_bytes,
    musicgen_work,
    ram_bytes,
    read_config,
    vits_phases,
    work_bytes,
)
from lollms_local.errors import LoadError

MIB = 1 << 20
#: EnCodec of MusicGen: 50 frames a second of 640 samples
ENCODEC_32 = {
    "sampling_rate": 32_000, "num_filters": 64, "upsampling_ratios": [8, 5, 4, 4], "use_conv_shortcut": False,
}  # fmt: skip
BARK_NETWORK = {"num_layers": 24, "num_heads": 16, "hidden_size": 1024}
BARK = {
    "semantic_config": BARK_NETWORK,
    "coarse_acoustics_config": BARK_NETWORK,
    "fine_acoustics_config": BARK_NETWORK,
    "codec_config": {},
}


def most(phases: Any) -> float:
    return max(sum(phase) for phase in phases)


# --- from sizes to a peak -----------------------------------------------------------------------------------------


def test_in_ram_large_blocks_come_and_go_and_the_heap_keeps_what_small_ones_took() -> None:
    small, large = [10 * MIB] * 3, [40 * MIB, 40 * MIB, MIB]
    assert ram_bytes([small, large, [64 * MIB]]) == 80 * MIB + 27 * MIB  # nine tenths are left
    assert ram_bytes([small, [40 * MIB]]) == 67 * MIB
    assert ram_bytes([]) == 0


def test_in_ram_a_heap_of_its_own_has_holes() -> None:
    assert ram_bytes([[10 * MIB] * 3, [MIB]]) == 51 * MIB


def test_on_a_gpu_caches_stay_beside_the_activations_and_those_get_scratch_memory() -> None:
    assert gpu_bytes([[MIB] * 4], [[10 * MIB], [20 * MIB]]) == 4 * MIB + 30 * MIB + GPU_FIXED_BYTES
    for kind in ("cuda", "mps"):
        assert work_bytes(Device(kind), [], [[MIB]]) > GPU_FIXED_BYTES  # type: ignore[arg-type]
    assert work_bytes(Device("cpu"), [[MIB]], []) < 2 * MIB


# --- codecs -------------------------------------------------------------------------------------------------------


def test_a_codec_needs_four_and_a_half_units_of_its_last_stage() -> None:
    unit = 64 * 30 * 32_000 * 4  # channels, samples of 30 s, float32
    assert codec_frames(ENCODEC_32, 30) == 1_500
    assert most(codec_phases(ENCODEC_32, 1_500, 4)) == 4.5 * unit  # torch's profiler counted 1106.7 MB, this is 1105.9


def test_a_convolution_beside_the_block_makes_it_five() -> None:
    # Bark's codec has it: 32 channels, 320 samples a frame, 1155 frames for 15.4 s
    assert most(codec_phases({}, 1_155, 4)) == 5 * 32 * 1_155 * 320 * 4  # the profiler: 237.0 MB, this is 236.5


def test_a_wider_codec_needs_more_in_proportion_and_a_very_narrow_one_no_less_than_blocks_of_16() -> None:
    narrow = codec_phases({**ENCODEC_32, "num_filters": 32}, 1_500, 4)
    assert most(codec_phases(ENCODEC_32, 1_500, 4)) == 2 * most(narrow)
    row = 30 * 32_000 * 4
    tiny = most(codec_phases({**ENCODEC_32, "num_filters": 2}, 1_500, 4))
    assert tiny == (3 * 2 + 16 + 16) * row  # the profiler: 138 MB, this is 146


def test_half_precision_and_half_the_length_need_half() -> None:
    whole = most(codec_phases(ENCODEC_32, 1_500, 4))
    assert most(codec_phases(ENCODEC_32, 1_500, 2)) == most(codec_phases(ENCODEC_32, 750, 4)) == whole / 2


# --- VITS ---------------------------------------------------------------------------------------------------------


def test_vits_needs_six_units_of_its_widest_stage_and_four_maps_of_text_to_frames() -> None:
    frames = 30 * 16_000 // 256
    unit = 32 * 256 * frames * 4  # the last stage; those before it are as large, with more channels and fewer samples
    assert most(vits_phases({}, 30, 801)) == 6 * unit + 4 * frames * 801 * 4


def test_a_vits_of_half_the_width_needs_half_and_a_faster_rate_more() -> None:
    maps = 4 * 1_875 * 801 * 4
    half = most(vits_phases({"upsample_initial_channel": 256}, 30, 801)) - maps
    assert half == (most(vits_phases({}, 30, 801)) - maps) / 2
    assert most(vits_phases({"sampling_rate": 22_050}, 30, 801)) > 1.37 * most(vits_phases({}, 30, 801))


def test_a_vits_with_a_narrow_decoder_needs_what_attention_over_the_text_does() -> None:
    config = {"upsample_initial_channel": 2, "upsample_rates": [2], "upsample_kernel_sizes": [4], "sampling_rate": 100,
              "num_attention_heads": 8}  # fmt: skip
    assert most(vits_phases(config, 1, 801)) == 7 * 8 * 801 * 801 * 4


# --- caches -------------------------------------------------------------------------------------------------------


def test_a_cache_is_keys_and_values_of_every_layer_and_one_that_is_being_copied() -> None:
    assert sum(cache(24, 1_024, 1_025, 2)) == 49 * 1_024 * 1_025 * 2


def test_musicgen_has_a_cache_of_two_sequences_and_a_melody_makes_it_longer() -> None:
    large = {"decoder": {"num_hidden_layers": 48, "hidden_size": 2_048}, "audio_encoder": ENCODEC_32}
    (kept,), phases = musicgen_work(large, 32, 2)
    assert sum(kept) == 97 * 2 * 2_048 * 1_600 * 2
    assert most(phases) == 4.5 * 64 * 32 * 32_000 * 2
    (longer,), _ = musicgen_work({**large, "num_chroma": 12}, 32, 2)
    assert sum(longer) == sum(kept) / 1_600 * 1_835


def test_bark_keeps_two_caches_and_its_piece_is_as_long_as_its_settings_allow() -> None:
    (semantic, coarse), phases = bark_work(BARK, {}, 4)
    assert (sum(semantic), sum(coarse)) == (49 * 1_024 * 1_025 * 4, 49 * 1_024 * 947 * 4)
    assert most(phases) == 5 * 32 * 1_155 * 320 * 4  # the codec's, over what the fine network needs:
    assert 2 * 16 * 1_024 * 1_024 * 4 + 6 * 1_024 * 1_024 * 4 in [sum(phase) for phase in phases]
    (shorter, _), less = bark_work(BARK, {"semantic_config": {"max_new_tokens": 384}}, 4)
    assert sum(shorter) == 49 * 1_024 * 641 * 4
    assert most(less) < most(phases)


# --- configs that are not as they should be -----------------------------------------------------------------------


WRONG = ("wide", 0, True, float("inf"))


@pytest.mark.parametrize(
    "wrong",
    [*({"num_filters": value} for value in WRONG), *({"upsampling_ratios": value} for value in ([], [8, -5], 8))],
)
def test_widths_that_are_no_numbers_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match=f"{next(iter(wrong))}="):
        codec_phases(wrong, 100, 4)


def test_a_config_without_a_decoder_is_no_musicgen() -> None:
    with pytest.raises(LoadError, match="no MusicGen"):
        musicgen_work({"audio_encoder": ENCODEC_32}, 30, 4)


def test_a_config_is_read_from_the_folder_and_absurd_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_filters": 64}))
    assert read_config(tmp_path) == {"num_filters": 64}
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 10**6}))
    with pytest.raises(LoadError, match="no model has"):
        read_config(tmp_path)
