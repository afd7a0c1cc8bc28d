"""Images through a projector: what the plain library sees, looked at once, and no damage that ends the process."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lollms_local.engines.llama_cpp import LlamaCppChat
from lollms_local.errors import LoadError, MediaError, UnsupportedRequest
from lollms_local.modalities.base import Control
from lollms_local.modalities.chat import ChatLoadOptions, ChatOptions, ChatRequest, ChatResult
from tests.tiny import gguf
from tests.tiny.projector import IMAGE_POSITIONS, projector

from .llama_models import opened

HERE = {"type": "image"}


def png(color: str, size: tuple[int, int] = (60, 40)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its projector, as a download leaves them."""
    place = tmp_path_factory.mktemp("vision")
    gguf.llama(place / "model.gguf", endless=True)
    projector(place / "mmproj-model.gguf")
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LlamaCppChat]:
    with opened(folder) as loaded:
        yield loaded


def ask(model: LlamaCppChat, *parts: Any, images: list[bytes], **options: Any) -> ChatResult:
    request = ChatRequest(messages=[{"role": "user", "content": list(parts)}], images=images)
    return model.generate(
        request, ChatOptions(**{"temperature": 0, "n_predict": 12, **options}), Control(), lambda piece: True
    )


def by_the_library(folder: Path, text: str, image: bytes, count: int) -> str:
    """Greedy continuation of a text after an image, by llama-cpp-python and its mtmd alone."""
    import llama_cpp
    from llama_cpp import mtmd_cpp as mtmd

    plain = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=512, n_threads=1, verbose=False)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads = False, 1
    eyes = mtmd.mtmd_init_from_file(str(folder / "mmproj-model.gguf").encode(), plain.model, params)
    pixels = Image.open(io.BytesIO(image)).convert("RGB")
    data = (ctypes.c_uint8 * (pixels.width * pixels.height * 3)).from_buffer_copy(pixels.tobytes())
    bitmap = mtmd.mtmd_bitmap_init(pixels.width, pixels.height, data)
    said = mtmd.mtmd_default_marker() + text.encode()
    given = mtmd.mtmd_input_text(text=said, text_len=len(said), add_special=False, parse_special=True)
    chunks, past = mtmd.mtmd_input_chunks_init(), llama_cpp.llama_pos(0)
    row = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(eyes, chunks, ctypes.byref(given), row, 1) == 0
    assert mtmd.mtmd_helper_eval_chunks(eyes, plain._ctx.ctx, chunks, 0, 0, 512, True, ctypes.byref(past)) == 0
    tokens: list[int] = []
    greedy = llama_cpp.llama_sampler_init_greedy()
    while len(tokens) < count:
        tokens.append(llama_cpp.llama_sampler_sample(greedy, plain._ctx.ctx, -1))
        plain.n_tokens = past.value + len(tokens) - 1
        plain.eval(tokens[-1:])
    text_out = plain.detokenize(tokens).decode("utf-8", "replace")
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_free(eyes)
    plain.close()
    return text_out


@pytest.mark.parametrize("image", [RED, BLUE], ids=["red", "blue"])
def test_the_answer_is_the_library_s(model: LlamaCppChat, folder: Path, image: bytes) -> None:
    request = ChatRequest(prompt="abc", images=[image])
    ours = model.generate(request, ChatOptions(temperature=0, n_predict=10), Control(), lambda piece: True)
    assert ours.prompt_tokens == IMAGE_POSITIONS + 3
    assert ours.text.encode("utf-8", "replace") == by_the_library(folder, "abc", image, 10).encode("utf-8", "replace")


def test_what_is_in_a_picture_and_where_it_stands_make_a_difference(model: LlamaCppChat) -> None:
    answers = {
        ask(model, HERE, "What is it?", images=[RED]).text,
        ask(model, HERE, "What is it?", images=[BLUE]).text,
        ask(model, "What is it?", HERE, images=[RED]).text,
        ask(model, HERE, HERE, "What is it?", images=[RED, BLUE]).text,
        ask(model, HERE, HERE, "What is it?", images=[BLUE, RED]).text,
        ask(model, "What is it?", images=[]).text,
    }
    assert len(answers) == 6


def test_a_picture_that_is_known_is_not_looked_at_again(model: LlamaCppChat) -> None:
    first = ask(model, "Look.", HERE, "What is it?", images=[RED], cache_prompt=False)
    again = ask(model, "Look.", HERE, "What is it?", images=[RED])
    other = ask(model, "Look.", HERE, "What is it?", images=[BLUE])
    assert (again.text, again.prompt_tokens) == (first.text, first.prompt_tokens)
    assert again.cached_tokens == again.prompt_tokens - 1
    assert other.cached_tokens < other.prompt_tokens - IMAGE_POSITIONS, "what follows another picture is read anew"
    assert ask(model, "Look.", HERE, "What is it?", images=[BLUE], cache_prompt=False).text == other.text


def test_text_alone_is_answered_as_without_a_projector(model: LlamaCppChat, folder: Path) -> None:
    ask(model, HERE, "What is it?", images=[RED])
    with opened(folder, mmproj="none") as blind:
        assert not blind.info.vision and model.info.vision
        assert ask(model, "Hello.", images=[]).text == ask(blind, "Hello.", images=[]).text
        with pytest.raises(UnsupportedRequest, match="cannot see images"):
            ask(blind, HERE, "What is it?", images=[RED])


def test_whether_a_model_sees_is_known_from_its_files(folder: Path) -> None:
    assert LlamaCppChat.sees(folder, ChatLoadOptions())
    assert not LlamaCppChat.sees(folder, ChatLoadOptions(mmproj="none"))
    assert LlamaCppChat.describe(folder, ChatLoadOptions())["supports_vision"]


def test_guessing_ahead_never_guesses_a_picture(folder: Path) -> None:
    with opened(folder, speculation="prompt_lookup", draft_tokens=8) as drafting, opened(folder) as plain:
        for parts in (("abcabc", HERE, "abc"), ("aaaa", HERE, "aaaa", HERE, "aaaa")):
            images = [RED, BLUE][: parts.count(HERE)]
            assert ask(drafting, *parts, images=images).text == ask(plain, *parts, images=images).text


def test_images_and_their_places_must_agree(model: LlamaCppChat) -> None:
    with pytest.raises(UnsupportedRequest, match="1 images and 0 places"):
        ask(model, "What is it?", images=[RED])
    with pytest.raises(MediaError):
        ask(model, HERE, "What is it?", images=[RED[:30]])
    assert ask(model, HERE, "What is it?", images=[RED]).text


def test_pictures_that_do_not_fit_are_refused_before_any_work(folder: Path) -> None:
    with opened(folder, ctx_size=256) as small:
        with pytest.raises(UnsupportedRequest, match="has room for 256"):
            ask(small, *[HERE] * 70, "What are they?", images=[png("red", (60 + k, 40)) for k in range(70)])
        assert ask(small, HERE, "What is it?", images=[RED]).text


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"drop": "v.position_embd.weight"}, "end its process"),
        ({"drop": "v.blk.0.attn_q.weight"}, "end its process"),
        ({"drop": "mm.2.weight"}, "projection is missing"),
        ({"drop": "v.patch_embd.weight"}, "first layer is missing"),
        ({"drop": "v.blk.0.ffn_up.weight"}, "unable to find tensor"),
        ({"embedding": 32}, "mismatch"),
        ({"clip__vision__image_size": 56}, "end its process"),
        ({"clip__vision__attention__head_count": 3}, "do not go together"),
        ({"clip__vision__patch_size": 0}, "patch_size is 0"),
        ({"clip__projector_type": "qwen2vl_merger"}, "end its process"),
        ({"clip__projector_type": "nonsense"}, "unknown projector type"),
        ({"clip__has_vision_encoder": False}, "not a vision projector"),
    ],
)
def test_a_damaged_projector_is_an_error_and_not_the_end(folder: Path, tmp_path: Path, damage: Any, told: str) -> None:
    bad = projector(tmp_path / "mmproj-bad.gguf", **damage)
    with pytest.raises(LoadError, match=told), opened(folder / "model.gguf", mmproj=str(bad)):
        pass


def test_a_language_model_is_no_projector(folder: Path) -> None:
    model = folder / "model.gguf"
    with pytest.raises(LoadError, match="not a vision projector"), opened(model, mmproj=str(model)):
        pass
