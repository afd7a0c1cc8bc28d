"""From what was asked to what the pipeline is asked: frames, size, steps. Pure; every change is told in a note."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedRequest
from ..modalities.image import parse_size
from ..modalities.video import VideoOptions
from ._video_families import VideoRules

__all__ = ["FilmRequest", "plan_film"]

#: a draft, where nothing else is said: a Wan 1.3B film of these sizes takes minutes on a desktop CPU instead of a day
DRAFT_PIXELS = 320 * 192
DRAFT_FPS = 8.0
DRAFT_STEPS = 12
DRAFT_FRAMES = 17
#: slower than this is no film any more, so a duration is refused rather than stretched
SLOWEST_FPS = 4.0
#: frames are held in memory as bytes: 4 GiB of them at most
MAX_FILM_BYTES = 4 << 30


@dataclass(frozen=True)
class FilmRequest:
    """What the pipeline is asked for, and what is kept of it.

    Attributes:
        width, height: pixels.
        ask_frames: frames that the pipeline makes.
        keep_frames: frames of the film: the first so many.
        fps: frames per second of the film.
        steps, guidance: as diffusers understands them.
        notes: what differs from what was asked, and why.
    """

    width: int
    height: int
    ask_frames: int
    keep_frames: int
    fps: float
    steps: int
    guidance: float
    notes: tuple[str, ...] = ()


def plan_film(
    rules: VideoRules,
    options: VideoOptions,
    defaults: Mapping[str, Any],
    *,
    on_cpu: bool,
    picture_size: tuple[int, int] | None = None,
) -> FilmRequest:
    """Settle a request.

    Args:
        rules: what the model can make.
        options: what was asked; automatic values are filled in here.
        defaults: the model's own settings from the catalogue; they win over its family's.
        on_cpu: `quality="auto"` means a draft there.
        picture_size: width and height of the first picture: the film takes its shape where no size was asked.

    Raises:
        UnsupportedRequest: too long, or too large to hold.
    """
    usual = VideoOptions.merge(defaults)
    draft = options.quality == "draft" or (options.quality == "auto" and on_cpu)
    notes: list[str] = []
    width, height = _size(rules, options, usual, draft, picture_size, notes)
    keep, fps = _length(rules, options, usual, draft, notes)
    ask = rules.legal_frames(keep)
    if ask != keep:
        notes.append(f"{rules.family} makes {ask} frames; the first {keep} are kept.")
    if width * height * 3 * ask > MAX_FILM_BYTES:
        raise UnsupportedRequest(
            f"{ask} frames of {width}x{height} are too many to hold in memory.",
            hint="Ask for a shorter or smaller film.",
        )
    steps = options.steps or usual.steps or rules.steps
    if draft and not options.steps:
        steps = min(steps, DRAFT_STEPS)
    said = [g for g in (options.guidance, usual.guidance) if g >= 0]
    if draft and not (options.steps and options.fps and (options.width or options.height or options.size)):
        notes.append(
            f"A draft: {width}x{height}, {fps:.3g} frames a second, {steps} steps. "
            'quality="full" makes what the model was made for, far more slowly.'
        )
    return FilmRequest(width, height, ask, keep, fps, steps, said[0] if said else rules.guidance, tuple(notes))


def _length(
    rules: VideoRules, options: VideoOptions, usual: VideoOptions, draft: bool, notes: list[str]
) -> tuple[int, float]:
    """Frames to keep, and frames per second."""
    native = usual.fps or rules.fps
    fps = options.fps or (min(native, DRAFT_FPS) if draft else native)
    longest = rules.longest()
    if options.num_frames:
        keep = options.num_frames
    elif options.duration:
        keep = _frames_of(options.duration, fps)
        if longest and keep > longest and not options.fps and longest / options.duration >= SLOWEST_FPS:
            fps = longest / options.duration
            notes.append(f"{rules.family} makes at most {longest} frames, so the film runs at {fps:.3g} a second.")
            keep = longest
    else:
        from_duration = _frames_of(usual.duration, native) if usual.duration else 0
        keep = usual.num_frames or from_duration or rules.num_frames
        keep = min(keep, DRAFT_FRAMES) if draft else keep
    if longest and keep > longest:
        raise UnsupportedRequest(
            f"This {rules.family} model makes at most {longest} frames in one go, and {keep} were asked for.",
            hint=f"Ask for at most {longest / fps:.3g} seconds at {fps:.3g} frames a second, or for fewer a second.",
        )
    return keep, fps


def _frames_of(duration_s: float, fps: float) -> int:
    return max(1, round(duration_s * fps))


def _size(
    rules: VideoRules,
    options: VideoOptions,
    usual: VideoOptions,
    draft: bool,
    picture_size: tuple[int, int] | None,
    notes: list[str],
) -> tuple[int, int]:
    both = parse_size(options.size)
    width, height = options.width or both[0], options.height or both[1]
    native = usual.width or rules.width, usual.height or rules.height
    shape = picture_size or native
    if width and height:
        asked = width, height
    elif width:
        asked = width, round(width * shape[1] / shape[0])
    elif height:
        asked = round(height * shape[0] / shape[1]), height
    else:
        pixels = native[0] * native[1]
        scale = math.sqrt((min(pixels, DRAFT_PIXELS) if draft else pixels) / (shape[0] * shape[1]))
        asked = round(shape[0] * scale), round(shape[1] * scale)
    made = rules.legal_size(*asked)
    if (width, height) != (0, 0) and made != asked:
        why = "no other size" if rules.fixed_size else f"sides that are multiples of {rules.size_multiple}"
        notes.append(f"The size {asked[0]}x{asked[1]} became {made[0]}x{made[1]}: this model makes {why}.")
    return made
