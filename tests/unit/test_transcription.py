"""Transcripts in every form, turns, and where a long recording is cut."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lollms_local.devices import Device
from lollms_local.engines._whisper_folder import choose_compute_type
from lollms_local.engines._whisper_pieces import PIECE_S, SAMPLE_RATE, _quiet_cut, recording_pieces
from lollms_local.errors import UnsupportedRequest
from lollms_local.media import Audio
from lollms_local.modalities.transcription import Segment, Transcript, TranscriptionOptions, Word, turns_by_pauses

SEGMENTS = (
    Segment(0.0, 1.5, "Hello <there> & you.", (Word(0.0, 0.4, "Hello", 0.9),)),
    Segment(1.5, 2.0, ""),
    Segment(3661.2345, 3662.0, "Two\n\nlines"),
)
TRANSCRIPT = Transcript("Hello <there> & you. Two lines", SEGMENTS, "en", 0.5, 3700.0, "m")


def test_srt_numbers_lines_and_leaves_out_empty_ones() -> None:
    assert TRANSCRIPT.render("srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello <there> & you.\n\n2\n01:01:01,234 --> 01:01:02,000\nTwo\nlines\n"
    )


def test_vtt_escapes_what_the_format_reserves() -> None:
    assert TRANSCRIPT.render("vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello &lt;there&gt; &amp; you.\n\n"
        "01:01:01.234 --> 01:01:02.000\nTwo\nlines\n"
    )


def test_text_segments_and_json() -> None:
    assert TRANSCRIPT.render() == TRANSCRIPT.text
    assert TRANSCRIPT.render("segments").splitlines()[0] == "[0.00 -> 1.50] Hello <there> & you."
    data = json.loads(TRANSCRIPT.render("json"))
    assert data["language"] == "en" and data["segments"][0]["words"][0]["text"] == "Hello"
    with pytest.raises(UnsupportedRequest, match="no transcript format"):
        TRANSCRIPT.render("pdf")


def test_nothing_said_is_an_empty_file_of_every_form() -> None:
    nothing = Transcript("", (), "", 0.0, 3.0)
    assert [nothing.render(f) for f in ("text", "segments", "srt", "vtt")] == ["", "", "", "WEBVTT\n"]


def test_turns_end_at_pauses() -> None:
    lines = [Segment(0, 1, "a"), Segment(1.5, 2, "b"), Segment(4, 5, "c")]
    turns = turns_by_pauses(lines, "Ann")
    assert [(t.speaker, t.start_s, t.end_s, t.text) for t in turns] == [("Ann", 0, 2, "a b"), ("Ann", 4, 5, "c")]
    assert turns_by_pauses([], "Ann") == []


def test_other_spellings_of_options_are_understood() -> None:
    options = TranscriptionOptions.merge({"response_format": "SRT", "prompt": "Bo", "vad": "off", "beam_size": "3"})
    assert (options.output, options.initial_prompt, options.vad_filter, options.beam_size) == ("srt", "Bo", False, 3)


@pytest.mark.parametrize(
    ("kind", "compute_type", "dtype", "wanted"),
    [
        ("cpu", "auto", "auto", "int8"),
        ("cuda", "auto", "auto", "float16"),
        ("cpu", "auto", "float32", "float32"),
        ("cpu", "float16", "auto", "int8"),
        ("cpu", "int8_float16", "auto", "int8"),
        ("cpu", "bfloat16", "auto", "float32"),
        ("cuda", "int8_float16", "float32", "int8_float16"),
    ],
)
def test_the_arithmetic_fits_the_device_and_has_a_reason(kind: str, compute_type: str, dtype: str, wanted: str) -> None:
    found, reason = choose_compute_type(Device(kind), compute_type, dtype)  # type: ignore[arg-type]
    assert found == wanted and reason


def test_a_long_recording_is_cut_where_it_is_quiet_and_nothing_is_lost() -> None:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, int((PIECE_S + 30) * SAMPLE_RATE)).astype(np.float32)
    quiet = int((PIECE_S - 7.3) * SAMPLE_RATE)
    samples[quiet - 8000 : quiet + 8000] = 0
    assert abs(_quiet_cut(samples, int(PIECE_S * SAMPLE_RATE)) - quiet) < 8000
    pieces = list(recording_pieces(Audio(samples, SAMPLE_RATE)))
    assert len(pieces) == 2
    assert np.array_equal(np.concatenate([p.samples[0] for p in pieces]), samples)


def test_a_recording_up_to_the_limit_is_one_piece() -> None:
    samples = np.zeros(int(PIECE_S * SAMPLE_RATE), np.float32)
    assert [p.samples.shape[1] for p in recording_pieces(Audio(samples, SAMPLE_RATE))] == [len(samples)]
