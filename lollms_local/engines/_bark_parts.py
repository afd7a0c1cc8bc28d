"""Bark's four networks at work: progress and cancel in each, their codes, and only one of them on a small GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..devices import Device
from ..modalities.base import Control
from . import _torch

__all__ = ["PARTS", "PartsInTurn"]

#: attributes of the model, in the order in which they work
PARTS = ("semantic", "coarse_acoustics", "fine_acoustics", "codec_model")


class PartsInTurn:
    """Watches, and if asked moves, the parts of a `BarkModel`.

    `BarkModel.generate` calls `generate` of the first three parts and then `codec_decode`; these four are wrapped on
    the instance. accelerate's own offload does not run without a CUDA build, hides which stage is at work, and keeps
    two parts on the device.

    Args:
        model: the BarkModel.
        device: where the work is done.
        offload: keep only the part at work on `device`, the others on the CPU.
    """

    def __init__(self, model: Any, device: Device, *, offload: bool) -> None:
        self._model = model
        self._device = device
        self._offload = offload
        self._outputs: dict[str, Any] = {}
        for part in PARTS[:3]:
            network = getattr(model, part)
            network.generate = self._in_turn(part, network.generate)
        model.codec_decode = self._in_turn("codec_model", model.codec_decode)

    def release(self) -> None:
        """Undo the wrapping: it makes cycles that would keep the model until a collection."""
        model, self._model = self._model, None
        self._outputs.clear()
        if model is None:
            return
        for part in PARTS[:3]:
            getattr(model, part).__dict__.pop("generate", None)
        model.__dict__.pop("codec_decode", None)

    def _in_turn(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def turn(*args: Any, **kwargs: Any) -> Any:
            if self._offload:
                self._place(part)
            output = work(*args, **kwargs)
            self._outputs[part] = output
            return output

        return turn

    def _place(self, part: str) -> None:
        """Bring one part to the device and send the others away."""
        for other in PARTS:
            if other != part:
                getattr(self._model, other).to("cpu")
        getattr(self._model, part).to(self._device.torch_name)

    # --- progress and cancel ----------------------------------------------------------------------------------

    @contextmanager
    def reporting(self, control: Control) -> Iterator[None]:
        """While the block runs, every step of every part reports to `control`, which may stop it by raising.

        The fine part is called by ``.forward``, past its own hooks, so its last normalisation is watched instead.
        """
        model = self._model
        self._outputs.clear()
        watched = (
            ("semantic", [model.semantic], "token", lambda: 0),
            ("coarse", [model.coarse_acoustics], "token", self._coarse_steps),
            ("fine", [model.fine_acoustics.layernorm_final], "step", lambda: 0),
            ("decode", _leaves(model.codec_model.decoder), "step", lambda: 0),
        )
        with ExitStack() as stack:
            stack.callback(self._outputs.clear)  # they are on the device
            if self._offload:
                stack.callback(self._place, PARTS[0])
                self._place(PARTS[0])
            for stage, modules, unit, total in watched:
                stack.enter_context(_torch.hooks(modules, _counter(control, stage, unit, total)))
            yield

    def _coarse_steps(self) -> int:
        """Coarse tokens to come: 2 codebooks at 75 Hz for semantic tokens at 49.9 Hz."""
        semantic = self._outputs.get("semantic")
        config = self._model.generation_config
        ratio = config.coarse_acoustics_config.get("coarse_rate_hz", 75) / config.semantic_config.get(
            "semantic_rate_hz", 49.9
        )
        books = config.coarse_acoustics_config.get("n_coarse_codebooks", 2)
        return 0 if semantic is None else int(semantic.shape[1] * ratio) * books

    # --- codes ------------------------------------------------------------------------------------------------

    def codes(self) -> dict[str, Any]:
        """What was just said, in the form of a voice preset: numpy arrays [n], [2, T] and [8, T]."""
        semantic, fine = self._outputs["semantic"][0], self._outputs["fine_acoustics"][0]
        pad = self._model.generation_config.semantic_config.get("semantic_pad_token", 10_000)
        spoken = semantic[semantic < pad]
        books = self._model.generation_config.coarse_acoustics_config.get("n_coarse_codebooks", 2)
        prompts = {"semantic_prompt": spoken, "coarse_prompt": fine[:books], "fine_prompt": fine}
        return {name: codes.cpu().numpy() for name, codes in prompts.items()}


def _counter(control: Control, stage: str, unit: str, total: Callable[[], int]) -> Callable[[], None]:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        control.report(count, total(), unit, stage)

    return step


def _leaves(module: Any) -> list[Any]:
    return [m for m in module.modules() if not list(m.children())]
