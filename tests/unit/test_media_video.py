"""Films: the pixels, the rate, the sound and the metadata that went in come out."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lollms_local.errors import MediaError
from lollms_local.media import Audio, decode_video, encode_video


def moving(frames: int = 12, height: int = 64, width: int = 96) -> np.ndarray:
    """A bright bar that moves down over a ramp."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 200, width).astype(np.uint8)
    for i in range(frames):
        pixels[i, 4 * i : 4 * i + 8, :, 1] = 230
    return pixels


SOUND = Audio((0.4 * np.sin(np.arange(24_000) * 0.1)).astype(np.float32), 24_000)


@pytest.mark.parametrize("fps", [8, 12.5, 23.976, 29.97, 60])
@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_frames_and_rate_survive(form: str, fps: float) -> None:
    pixels = moving()
    found, rate, sound = decode_video(encode_video(pixels, fps, form))
    assert found.shape == pixels.shape
    assert rate == pytest.approx(fps, rel=1e-3)
    assert sound is None
    assert np.abs(found.astype(int) - pixels).mean() < 6
    bars = [int(frame[..., 1].mean(axis=1).argmax()) // 4 for frame in found]
    assert bars == sorted(bars) and len(set(bars)) > 10


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 30), (20, 40, 250), (255, 255, 255), (0, 0, 0)])
def test_plain_colours_keep_their_tone(colour: tuple[int, int, int]) -> None:
    pixels = np.broadcast_to(np.array(colour, np.uint8), (4, 64, 64, 3))
    found, _, _ = decode_video(encode_video(pixels, 8))
    assert np.abs(found[2, 32, 32].astype(int) - colour).max() <= 4


@pytest.mark.parametrize("size", [(63, 81), (1, 1), (2, 33), (17, 16)])
def test_odd_sizes_are_padded_by_their_edge(size: tuple[int, int]) -> None:
    height, width = size
    found, _, _ = decode_video(encode_video(np.full((3, height, width, 3), 200, np.uint8), 8))
    assert found.shape[1:3] == (height + height % 2, width + width % 2)
    assert np.abs(found.astype(int) - 200).max() <= 6


@pytest.mark.parametrize("form", ["mp4", "webm"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_track_survives(form: str, channels: int) -> None:
    sound = Audio(np.repeat(SOUND.samples, channels, axis=0), 24_000)
    _, _, found = decode_video(encode_video(moving(), 12, form, audio=sound))
    assert found is not None and found.channels == channels
    assert found.duration_s == pytest.approx(1, abs=0.1)
    assert np.abs(found.samples).max() == pytest.approx(0.4, abs=0.1)


def test_an_mp4_has_its_index_in_front_and_its_metadata(tmp_path: Path) -> None:
    data = encode_video(moving(), 8, metadata={"comment": "a heron", "prompt": "鷺 at dawn"})
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data), format="mp4") as container:
        assert container.metadata["comment"] == "a heron"
        assert container.metadata["prompt"] == "鷺 at dawn"
        stream = container.streams.video[0]
        assert (stream.codec_context.pix_fmt, stream.codec_context.name) == ("yuv420p", "h264")


def test_a_gif_is_animated_in_the_right_tempo() -> None:
    with Image.open(io.BytesIO(encode_video(moving(), 10, "gif"))) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (12, (96, 64), 100)


def test_a_single_frame_is_a_film() -> None:
    found, _, _ = decode_video(encode_video(moving(1), 8))
    assert len(found) == 1


def test_what_is_no_film_is_refused() -> None:
    for frames in (moving() / 255.0, moving()[0], moving()[..., :2], moving()[:0]):
        with pytest.raises(MediaError, match="uint8 frames"):
            encode_video(frames, 8)
    for fps in (0, -1, 1000):
        with pytest.raises(MediaError, match="frames per second"):
            encode_video(moving(), fps)
    with pytest.raises(MediaError, match="no film format"):
        encode_video(moving(), 8, "avi")
    data = encode_video(moving(), 8)
    for bad in (b"", b"text", data[: len(data) // 3], "nothing.mp4"):
        with pytest.raises(MediaError):
            decode_video(bad)
