"""Images for a language model: a projector (mmproj) turns each into positions of the context, amid those of the text.

Pictures are decoded by our own reader and never by the library's: a hostile file meets limits first.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import Cancelled, GenerationError, LoadError, UnsupportedRequest
from ...gguf import GgufHeader
from ...media import decode_image
from ...modalities.base import Control
from .context import Context
from .native import NativeModel, complaint, library, quiet_logger

__all__ = ["Eyes", "Seen", "check_projector", "projector_workspace_bytes"]

MIB = 1 << 20
#: values per patch and unit of width that live at once in a vision encoder's layer, feed-forward included
_COPIES = 16
#: keys of a vision encoder -> (least, most)
_LIMITS = {
    "image_size": (1, 1 << 14),
    "patch_size": (1, 1 << 10),
    "embedding_length": (1, 1 << 16),
    "feed_forward_length": (0, 1 << 20),
    "block_count": (0, 1024),
    "attention.head_count": (1, 1 << 10),
}


def check_projector(header: GgufHeader) -> None:
    """Refuse what is no vision projector, and sizes over which the library divides by zero or ends the process.

    Raises:
        LoadError: another kind of file, or damaged.
    """
    about = header.metadata
    if header.architecture != "clip" or about.get("clip.has_vision_encoder") is not True:
        raise LoadError(
            f"{header.path.name} is not a vision projector.", hint="Give the mmproj file that belongs to the model."
        )
    sizes = {key: about.get(f"clip.vision.{key}", least) for key, (least, _) in _LIMITS.items()}
    for key, (least, most) in _LIMITS.items():
        if not isinstance(sizes[key], int) or isinstance(sizes[key], bool) or not least <= sizes[key] <= most:
            raise _damaged(header, f"clip.vision.{key} is {sizes[key]!r}")
    if sizes["patch_size"] > sizes["image_size"] or sizes["embedding_length"] % sizes["attention.head_count"]:
        raise _damaged(header, "its sizes do not go together")
    if about.get("clip.projector_type") in (None, "mlp") and not {"mm.2.weight", "mm.3.weight"} & set(header.tensors):
        raise _damaged(header, "its projection is missing")
    if "v.patch_embd.weight" not in header.tensors:
        raise _damaged(header, "its first layer is missing")


def _damaged(header: GgufHeader, why: str) -> LoadError:
    return LoadError(f"The projector {header.path.name} is damaged: {why}.", hint="Download it again.")


def projector_workspace_bytes(header: GgufHeader) -> int:
    """Activations of its encoder for one image of its own size."""
    about = header.metadata
    side = int(about.get("clip.vision.image_size", 336)) // int(about.get("clip.vision.patch_size", 14))
    return 16 * MIB + side * side * int(about.get("clip.vision.embedding_length", 1024)) * 4 * _COPIES


@dataclass(frozen=True)
class _Piece:
    """A stretch of a prompt: tokens of text, or an image (`chunk` is the library's)."""

    ids: list[int]
    cells: int
    chunk: Any = None


class Seen:
    """A prompt with images, split.

    Attributes:
        ids: one number per position: tokens of the text, and for each position of an image a negative number that
            stands for its content, so that equal beginnings are found as in text.
        cells: places of the cache that it takes; more than positions for models that count an image's rows and columns.
    """

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self.ids = [number for piece in pieces for number in piece.ids]
        self.cells = sum(piece.cells for piece in pieces)

    def whole_pieces(self, length: int) -> int:
        """The longest beginning of at most `length` positions that cuts no image."""
        end = 0
        for piece in self._pieces:
            if end + len(piece.ids) > length:
                return length if piece.chunk is None else end
            end += len(piece.ids)
        return end

    def unread(self, known: int) -> Iterator[tuple[list[int], Any]]:
        """What follows the first `known` positions, up to the last image: (tokens, None) or (ids, chunk)."""
        last = max((n for n, piece in enumerate(self._pieces) if piece.chunk is not None), default=-1)
        end = 0
        for piece in self._pieces[: last + 1]:
            start, end = end, end + len(piece.ids)
            if end > known:
                yield (piece.ids[max(0, known - start) :] if piece.chunk is None else piece.ids), piece.chunk


class Eyes:
    """A projector in memory, beside its model.

    Args:
        model: it must outlive this object.
        path: the projector, already checked.
        n_threads: for the encoder.
        use_gpu: whether it may be put on a GPU.

    Attributes:
        mark: stands for an image in a prompt's text; no user can know it.

    Raises:
        LoadError: the library refused the file, or it belongs to another model.
    """

    def __init__(self, model: NativeModel, path: Path, *, n_threads: int, use_gpu: bool) -> None:
        lib = self._lib = _multimodal()
        self.mark = f"<image {secrets.token_hex(8)}>"
        params = lib.mtmd_context_params_default()
        params.use_gpu = use_gpu
        params.print_timings = False
        params.n_threads = n_threads
        self._mark_bytes = self.mark.encode()
        params.media_marker = self._mark_bytes
        complaint()
        self._handle = lib.mtmd_init_from_file(str(path).encode("utf-8"), model.handle, params)
        if not self._handle or not lib.mtmd_support_vision(self._handle):
            self.close()
            raise LoadError(
                f"llama.cpp refused the projector {path.name}: {complaint() or 'it gives no images'}.",
                hint='Use the mmproj file that was made for this model, or mmproj="none" to do without images.',
            )

    def close(self) -> None:
        """Free it. Idempotent."""
        handle, self._handle = self._handle, None
        if handle:
            self._lib.mtmd_free(handle)

    @contextmanager
    def split(self, text: str, images: Sequence[bytes], *, add_bos: bool) -> Iterator[Seen]:
        """A prompt whose marks stand for `images`, in their order.

        Raises:
            MediaError: an image cannot be read. GenerationError: the library failed.
        """
        lib = self._lib
        chunks = lib.mtmd_input_chunks_init()
        bitmaps: list[Any] = []
        try:
            for data in images:
                bitmaps.append(self._bitmap(data))
            said = text.encode("utf-8")
            given = lib.mtmd_input_text(text=said, text_len=len(said), add_special=add_bos, parse_special=True)
            row = (lib.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            code = lib.mtmd_tokenize(self._handle, chunks, ctypes.byref(given), row, len(bitmaps))
            if code:
                raise GenerationError(f"llama.cpp could not read the images (code {code}): {complaint()}.")
            yield Seen(list(self._pieces(chunks, images)))
        finally:
            lib.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                lib.mtmd_bitmap_free(bitmap)

    def try_out(self) -> None:
        """Look at a grey picture, and at nothing else.

        Raises:
            GenerationError: the library failed.
        """
        from PIL import Image

        grey = io.BytesIO()
        Image.new("RGB", (64, 48), "grey").save(grey, "PNG")
        with self.split(self.mark, [grey.getvalue()], add_bos=False) as seen:
            for _, chunk in seen.unread(0):
                if chunk is not None and self._lib.mtmd_encode_chunk(self._handle, chunk):
                    raise GenerationError(f"llama.cpp could not look at an image: {complaint()}.")

    def _bitmap(self, data: bytes) -> Any:
        image = decode_image(data).convert("RGB")
        pixels = image.tobytes()
        buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        bitmap = self._lib.mtmd_bitmap_init(image.width, image.height, buffer)
        self._lib.mtmd_bitmap_set_id(bitmap, hashlib.sha256(data).hexdigest().encode())
        return bitmap

    def _pieces(self, chunks: Any, images: Sequence[bytes]) -> Iterator[_Piece]:
        lib = self._lib
        part_of: dict[bytes, int] = {}
        for number in range(lib.mtmd_input_chunks_size(chunks)):
            chunk = lib.mtmd_input_chunks_get(chunks, number)
            cells = int(lib.mtmd_input_chunk_get_n_tokens(chunk))
            if lib.mtmd_input_chunk_get_type(chunk) == lib.MTMD_INPUT_CHUNK_TYPE_TEXT:
                count = ctypes.c_size_t()
                tokens = lib.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                yield _Piece([int(tokens[k]) for k in range(count.value)], cells)
                continue
            name = lib.mtmd_input_chunk_get_id(chunk) or b""
            part_of[name] = part_of.get(name, -1) + 1  # large images come in several slices
            digest = hashlib.sha256(name + b"%d" % part_of[name]).digest()
            positions = int(lib.mtmd_input_chunk_get_n_pos(chunk))
            yield _Piece([-1 - int.from_bytes(digest[:7], "big")] * positions, cells, chunk)

    def read(self, context: Context, seen: Seen, control: Control) -> None:
        """Append to the context what it does not hold yet, up to the last image. The text after it is left.

        Raises:
            Cancelled, GenerationError: the context holds what it says. UnsupportedRequest: n_ubatch is too small.
        """
        context.truncate(seen.whole_pieces(len(context.tokens)))
        for ids, chunk in seen.unread(len(context.tokens)):
            if chunk is None:
                context.read(ids, control)
            else:
                control.check()
                self._show(context, ids, chunk)

    def _show(self, context: Context, ids: list[int], chunk: Any) -> None:
        lib = self._lib
        cells = lib.mtmd_input_chunk_get_n_tokens(chunk)
        if lib.mtmd_decode_use_non_causal(self._handle, chunk) and cells > context.n_ubatch:
            raise UnsupportedRequest(
                f"An image of this model is {cells} tokens, which must be computed at once.",
                hint=f"Load the model with n_ubatch={cells} or more, and n_batch as well.",
            )
        before, after = len(context.tokens), library().llama_pos(0)
        code = lib.mtmd_helper_eval_chunk_single(
            self._handle, context.handle, chunk, before, 0, context.n_batch, False, ctypes.byref(after)
        )
        if code == 0:
            context.tokens.extend(ids)
            return
        context.truncate(before)
        if context.abort.is_set():
            raise Cancelled()
        raise GenerationError(f"llama.cpp could not look at an image (code {code}): {complaint()}.")


def _multimodal() -> Any:
    """llama-cpp-python's ctypes module for images, with its log in ours."""
    try:
        import llama_cpp.mtmd_cpp as lib
    except (ImportError, OSError, RuntimeError) as exc:
        raise LoadError(
            "This llama-cpp-python was built without its image library (mtmd).",
            hint='Install it again without LLAVA_BUILD=OFF, or use mmproj="none".',
        ) from exc
    quiet_logger(lib.mtmd_log_set)
    quiet_logger(lib.mtmd_helper_log_set)
    return lib
