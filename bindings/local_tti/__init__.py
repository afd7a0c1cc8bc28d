"""Text to image for the LoLLMS host: pictures made in this process by `lollms_local`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lollms_client.lollms_tti_binding as host

from lollms_local.errors import LocalModelError
from lollms_local.host import LocalBinding, edge
from lollms_local.media import read_png_metadata
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.modalities.image import (
    EditInput,
    ImageLoadOptions,
    ImageModel,
    ImageOptions,
    ImageResult,
    parse_lora,
    parse_size,
    png_bytes,
    read_edit_input,
)

BindingName = "LocalTTI"
TITLE = "Local pictures (diffusers)"
DESCRIPTION = "Makes and edits pictures in this process with diffusers, offline. No server, no extra environment."
DESCRIBED_METHODS = ("generate_image", "edit_image")

#: hosts before 1.18 have no such class; it is a dictionary in all that have it
_Result: Any = getattr(host, "TTIGenerationResult", dict)
_WATERMARK = ("watermark_size_x", "watermark_size_y", "watermark_pos_x", "watermark_pos_y")


class LocalTTI(LocalBinding[ImageModel], host.LollmsTTIBinding):
    """The host's text-to-image contract."""

    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "tti"
    load_options: ClassVar[type[LoadOptions]] = ImageLoadOptions
    call_options: ClassVar[type[ImageOptions]] = ImageOptions
    default_model: ClassVar[str] = "sd-turbo"
    lists_records: ClassVar[bool] = True

    @edge
    def generate_image(
        self, prompt: str, negative_prompt: str | None = "", width: Any = None, height: Any = None, **kwargs: Any
    ) -> bytes:
        """Make one picture.

        Args:
            prompt: what to show.
            negative_prompt: what not to show.
            width, height: pixels, as numbers or text; None = the configured or the model's own.
            **kwargs: `size="512x768"`, `model`, any field of `ImageOptions`, `progress_callback`, `cancelled`.

        Returns:
            A PNG file with its recipe.
        """
        given = self._given(negative_prompt, width, height, {**kwargs, "n": 1})
        return self._png(self._make(prompt, given, EditInput()), 0, kwargs)

    @edge
    def edit_image(
        self,
        images: Any,
        prompt: str,
        negative_prompt: str | None = "",
        mask: Any = None,
        width: Any = None,
        height: Any = None,
        **kwargs: Any,
    ) -> bytes:
        """Change a picture: all of it, or what a mask marks in white.

        Args:
            images: one picture or a list: base64, data URL, path, bytes or PIL.
            prompt, negative_prompt: as `generate_image`.
            mask: picture of the same size, white = change; every other pixel stays as it is.
            width, height: None = the source keeps its size.

        Returns:
            A PNG file with its recipe.
        """
        edit = read_edit_input(images, mask)
        given = self._given(negative_prompt, width, height, {**kwargs, "n": 1}, edit)
        return self._png(self._make(prompt, given, edit), 0, kwargs)

    @edge
    def generate(
        self,
        prompt: str,
        negative_prompt: str | None = "",
        width: Any = None,
        height: Any = None,
        images: Any = None,
        mask: Any = None,
        n: Any = 1,
        modalities: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Make `n` pictures; with `images` edits of them.

        Returns:
            The host's `TTIGenerationResult`: `images` (PNG files), `metadata` with `seeds`, `notes` and the recipe.
        """
        edit = read_edit_input(images, mask)
        result = self._make(prompt, self._given(negative_prompt, width, height, {**kwargs, "n": n}, edit), edit)
        files = [self._png(result, i, kwargs) for i in range(len(result.images))]
        seeds = [image.seed for image in result.images]
        metadata = {**result.recipe, "seeds": seeds, "notes": list(result.notes)}
        return _Result(images=files, text=None, raw=None, metadata=metadata)

    @edge
    def paint(
        self,
        prompt: str,
        negative_prompt: str | None = "",
        width: Any = None,
        height: Any = None,
        image: Any = None,
        mask: Any = None,
        **kwargs: Any,
    ) -> str:
        """The removed name that the host's web application still calls; a PNG in base64."""
        edit = read_edit_input(image, mask)
        result = self._make(prompt, self._given(negative_prompt, width, height, {**kwargs, "n": 1}, edit), edit)
        return base64.b64encode(self._png(result, 0, kwargs)).decode("ascii")

    # --- how --------------------------------------------------------------------------------------------------

    def _given(
        self,
        negative_prompt: str | None,
        width: Any,
        height: Any,
        kwargs: Mapping[str, Any],
        edit: EditInput | None = None,
    ) -> dict[str, Any]:
        """The call's options: a size of 0, "" or less means that none was given."""
        sides = [0 if _is_unsaid(side) else side for side in (width, height)]
        if not any(sides) and kwargs.get("size"):
            sides = list(parse_size(str(kwargs["size"])))
        if edit is not None and edit.images and not any(sides):
            kwargs = {**kwargs, "keep_size": True}  # the source's, whatever size is configured for new pictures
        return {**kwargs, "negative_prompt": negative_prompt, "width": sides[0], "height": sides[1]}

    def _make(self, prompt: str, given: Mapping[str, Any], edit: EditInput) -> ImageResult:
        model = str(given.get("model") or "") or None
        spec = self.spec(model)
        options = self.options(given, spec)
        loras = [parse_lora(text, self._models_dir() / "loras") for text in options.loras]

        def use(engine: ImageModel, effective: ImageOptions, control: Control) -> ImageResult:
            if given.get("keep_size"):
                effective = effective.model_copy(update={"width": 0, "height": 0})
            return engine.generate(str(prompt), effective, control, edit=edit, loras=loras)

        result = self.run(use, given, model=model)
        for note in result.notes:
            self._say(note)
        return result

    def _png(self, result: ImageResult, index: int, kwargs: Mapping[str, Any]) -> bytes:
        """The file, with the host's watermark where one is configured."""
        png = png_bytes(result, index)
        mark = kwargs.get("watermark_path") or getattr(self, "watermark_path", None)
        if not mark or not hasattr(self, "process_image"):
            return png
        places = {name: int(float(value)) for name in _WATERMARK if (value := kwargs.get(name, self.config.get(name)))}
        marked = self.process_image(png, watermark_path=mark, metadata=read_png_metadata(png), **places)
        return bytes(marked)


def _is_unsaid(side: Any) -> bool:
    try:
        return float(side) <= 0
    except (TypeError, ValueError):
        return side is None or str(side).strip().lower() in ("", "none", "auto", "null")


def _self_test() -> int:
    """One small picture with the default model, without the client."""
    try:
        picture = LocalTTI().generate_image("a heron at dawn", width=256, height=256, steps=4, seed=1)
    except LocalModelError as exc:
        print(exc)
        return 1
    Path("local_tti_self_test.png").write_bytes(picture)
    print(f"local_tti_self_test.png: {len(picture)} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(_self_test())
