"""local_ttv inside the real host, the real engine on tiny models: every call a host makes, and the files it gets."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lollms_client import LollmsClient
from lollms_client.lollms_personality.lollms_personality import BindingToolsBuilder
from PIL import Image

from lollms_local.errors import Cancelled, MediaError, ModelNotDownloaded, UnsupportedRequest
from lollms_local.media import Audio, decode_audio, decode_video, encode_audio
from lollms_local.modalities.video import Video, video_bytes
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny import video as tiny

BINDINGS = Path(__file__).parents[2] / "bindings"
#: small and quick, in the host's own spelling: text
SMALL = {"width": "32", "height": "32", "steps": "1", "dtype": "float32", "seed": "3", "fps": "8"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in ("wan", "ltx"):
        tiny.save(tiny.FAMILIES[family](), root / f"tiny-{family}")
    return root


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks this small only get slower with more."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def runtime(models: Path) -> Iterator[Runtime]:
    fresh = Runtime(Settings(models_dir=str(models)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


def client(model: str = "tiny-wan", **config: Any) -> LollmsClient:
    """A client that loads the binding as the host does: by file."""
    return LollmsClient(
        llm_binding_name="",
        ttv_binding_name="local_ttv",
        ttv_bindings_dir=BINDINGS,
        ttv_binding_config={"model_name": model, **SMALL, **config},
        debug=False,
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def wav(seconds: float) -> bytes:
    rate = 22050
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return encode_audio(Audio(wave.astype(np.float32), rate), "wav")


def test_the_hosts_own_tool_gets_five_seconds_of_mp4(runtime: Runtime, tmp_path: Path) -> None:
    tool = BindingToolsBuilder._make_ttv_tool(client().ttv, tmp_path)
    answer = tool["callable"]("a heron at dawn", file_name="film")
    assert answer["success"], answer
    data = (tmp_path / "film.mp4").read_bytes()
    assert data[4:8] == b"ftyp" and data.index(b"moov") < data.index(b"mdat"), "it plays while it loads"
    frames, fps, sound = decode_video(data)
    assert frames.shape == (40, 32, 32, 3) and fps == 8 and len(frames) / fps == 5
    assert sound is None


@pytest.mark.parametrize(
    "asked",
    [
        {"duration": "1", "width": None, "height": "None", "guidance_scale": "0", "num_inference_steps": "1"},
        {"num_frames": 8, "size": "32x32", "negative_prompt": None, "callback": None, "unknown": object()},
        {"seconds": 1.0, "seed": "-1", "quality": "auto", "model": "tiny-ltx"},
        {"frames": "8", "image": None, "audio": None, "images": []},
    ],
)
def test_numbers_texts_and_none_are_what_the_host_meant(runtime: Runtime, asked: dict[str, Any]) -> None:
    frames, fps, _ = decode_video(client().generate_video("a heron", **asked))
    assert frames.shape == (8, 32, 32, 3) and fps == 8


def test_the_calls_wish_hides_the_configured_one_of_the_other_kind(runtime: Runtime) -> None:
    made = client(num_frames="5", width="64").generate_video("a heron", duration=1, size="32x48")
    assert decode_video(made)[0].shape == (8, 48, 32, 3)


@pytest.mark.parametrize(("fps", "frames"), [(8, 9), (12.5, 7), (24, 13), (29.97, 6)])
def test_the_file_has_the_frames_the_rate_and_the_size_that_were_promised(
    runtime: Runtime, fps: float, frames: int
) -> None:
    data = client().generate_video("a heron", num_frames=frames, fps=fps, width=40, height=24)
    decoded, rate, _ = decode_video(data)
    assert decoded.shape == (frames, 32, 48, 3)
    assert rate == pytest.approx(fps, rel=1e-4)
    import av

    with av.open(io.BytesIO(data), format="mp4") as film:
        track = film.streams.video[0]
        assert track.codec_context.name == "h264" and track.codec_context.pix_fmt == "yuv420p"
        assert film.metadata["title"] == "a heron" and '"seed": 3' in film.metadata["comment"]


def test_the_film_in_the_file_is_the_film_that_was_made() -> None:
    rows, columns = np.mgrid[0:96, 0:128]
    moving = [
        np.stack([128 + 100 * np.sin((columns + 3 * n) / 25), rows * 2.0, 255 - columns * 1.5 - n], axis=-1)
        for n in range(12)
    ]
    film = Video(np.stack(moving).clip(0, 255).astype(np.uint8), 12.0, 1)
    for form in ("mp4", "webm"):
        decoded, fps, _ = decode_video(video_bytes(film, form))
        assert decoded.shape == film.frames.shape and fps == 12
        assert psnr(decoded, film.frames) >= 35, form


def test_same_seed_same_file(runtime: Runtime) -> None:
    binding = client().ttv
    assert binding.generate_video("a heron", num_frames=5) == binding.generate_video("a heron", num_frames=5)
    assert binding.generate_video("a heron", num_frames=5, seed=4) != binding.generate_video("a heron", num_frames=5)


@pytest.mark.parametrize(("seconds", "form"), [(0.3, "mp4"), (3.0, "mp4"), (1.0, "webm"), (0.3, "webm")])
def test_a_sound_track_is_as_long_as_the_film(runtime: Runtime, seconds: float, form: str) -> None:
    data = client().generate_video("a heron", duration=1, audio=wav(seconds), format=form)
    frames, fps, sound = decode_video(data)
    assert sound is not None and len(frames) == 8
    assert abs(sound.duration_s - len(frames) / fps) <= 1 / fps
    loud = np.abs(sound.samples).max(axis=0) > 0.05
    assert loud[: int(0.2 * sound.sample_rate)].any(), "the sound is there"
    if seconds < 0.5:
        assert not loud[int(0.6 * sound.sample_rate) :].any(), "then silence"
    assert decode_audio(data).duration_s == sound.duration_s


def test_webm_and_gif_by_option(runtime: Runtime) -> None:
    binding = client().ttv
    webm = binding.generate_video("a heron", num_frames=5, format="webm")
    assert webm.startswith(b"\x1aE\xdf\xa3") and decode_video(webm)[0].shape == (5, 32, 32, 3)
    gif = binding.generate_video("a heron", num_frames=5, output_format="GIF", audio=wav(1))
    with Image.open(io.BytesIO(gif)) as animation:
        assert animation.format == "GIF" and animation.n_frames == 5 and animation.size == (32, 32)


def test_a_first_picture_in_every_form_the_host_has(runtime: Runtime, tmp_path: Path) -> None:
    picture = Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    picture.save(tmp_path / "first.png")
    raw = (tmp_path / "first.png").read_bytes()
    text = base64.b64encode(raw).decode()
    binding = client("tiny-ltx").ttv
    without = binding.generate_video("a heron", num_frames=9)
    forms = (raw, text, f"data:image/png;base64,{text}", str(tmp_path / "first.png"), picture, [raw])
    films = [binding.generate_video("a heron", num_frames=9, image=form) for form in forms]
    assert all(film == films[0] for film in films[1:])
    assert films[0] != without


def test_bad_input_is_refused_before_anything_is_loaded(runtime: Runtime) -> None:
    binding = client("tiny-ltx").ttv
    binding.unload_model()
    with pytest.raises(MediaError):
        binding.generate_video("a heron", image=b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(MediaError):
        binding.generate_video("a heron", audio=b"no sound at all")
    with pytest.raises(UnsupportedRequest, match="format"):
        binding.generate_video("a heron", format="avi")
    assert not binding.is_model_loaded()


def test_what_it_can_do_is_said_without_loading(runtime: Runtime) -> None:
    binding = client("tiny-ltx").ttv
    binding.unload_model()
    assert binding.get_capabilities() == {
        "text_to_video": True,
        "image_to_video": True,
        "lipsync": False,
        "sound_track": True,
    }
    assert client("tiny-wan").ttv.get_capabilities()["image_to_video"] is False
    assert not binding.is_model_loaded()
    assert binding.supports_lipsync() is False
    with pytest.raises(UnsupportedRequest, match="mouth"):
        binding.generate_lipsync_video(b"", b"", "hello", fps=8)
    with pytest.raises(UnsupportedRequest, match="cannot start from a picture"):
        client("tiny-wan").generate_video("a heron", image=Image.new("RGB", (32, 32)))


def test_the_form_of_the_written_guide_on_request(runtime: Runtime) -> None:
    answer: Any = client(error_mode="dict").ttv.generate_lipsync_video(b"", b"")
    assert answer["status"] == "error" and "mouth" in answer["message"] and answer["hint"]


def test_a_model_that_is_not_here_costs_no_client_and_says_how_to_get_it(runtime: Runtime) -> None:
    made = client("wan2.1-t2v-1.3b")
    assert made.ttv is not None and "models download wan2.1-t2v-1.3b" in str(made.ttv.get_last_error())
    assert made.ttv.get_capabilities()["text_to_video"] is True
    with pytest.raises(ModelNotDownloaded, match="models download"):
        made.generate_video("a heron")


def test_two_clients_share_one_model_and_it_comes_back_after_an_unload(runtime: Runtime) -> None:
    first, second = client().ttv, client().ttv
    assert type(first) is not type(second), "the host runs the file anew"
    before = first.generate_video("a heron", num_frames=5)
    assert second.is_model_loaded() and len(runtime.manager.snapshot()) == 1
    assert first.unload_model() is True
    assert not first.is_model_loaded() and not second.has_active_resources()
    assert second.generate_video("a heron", num_frames=5) == before
    assert second.model_name == "tiny-wan"


def test_progress_reaches_the_host_and_cancel_stops_at_the_next_step(runtime: Runtime) -> None:
    binding = client().ttv
    before = binding.generate_video("a heron", num_frames=5, steps=3)
    seen: list[dict[str, Any]] = []

    def stop(progress: dict[str, Any]) -> None:
        seen.append(progress)
        if progress["completed"] == 2:
            binding.cancel()

    with pytest.raises(Cancelled):
        binding.generate_video("a heron", num_frames=5, steps=3, progress_callback=stop)
    assert [row["completed"] for row in seen] == [1, 2] and {row["total"] for row in seen} == {3}
    assert seen[0]["status"] == "denoise" and seen[1]["percentage"] == pytest.approx(66.7, abs=0.1)
    asked = threading.Event()
    asked.set()
    with pytest.raises(Cancelled):
        binding.generate_video("a heron", cancelled=asked)
    assert binding.generate_video("a heron", num_frames=5, steps=3) == before


def test_four_threads_of_a_host_get_the_films_they_would_get_alone(runtime: Runtime) -> None:
    binding = client("tiny-ltx").ttv
    alone = [binding.generate_video("a heron", num_frames=9, seed=n) for n in range(4)]
    films: dict[int, bytes] = {}

    def work(seed: int) -> None:
        films[seed] = binding.generate_video("a heron", num_frames=9, seed=seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [films[n] for n in range(4)] == alone
