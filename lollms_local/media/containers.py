"""Containers: sound and films opened safely, and decoded as far as they can be."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import MediaError
from .files import open_source

__all__ = ["av_errors", "decoded_frames", "open_container"]

log = logging.getLogger(__name__)

#: damaged packets after which a file is given up
MAX_BAD_PACKETS = 100


@contextlib.contextmanager
def open_container(source: Any) -> Iterator[tuple[Any, str]]:
    """A PyAV container over a source, read by the demuxer that its first bytes name, and the source's name."""
    import av

    with (
        open_source(source) as (stream, container_format, name),
        av_errors(name),
        av.open(stream, format=container_format, metadata_errors="replace", io_open=_refuse_other_files) as container,
    ):
        yield container, name


def decoded_frames(container: Any, track: Any, name: str, said_s: float) -> Iterator[Any]:
    """All frames that can be decoded: damaged packets are left out, a missing end is said in the log."""
    import av

    done_s, bad = 0.0, 0
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            break
        except av.error.InvalidDataError as exc:
            bad += 1
            if bad > MAX_BAD_PACKETS:
                raise MediaError(f"{name} is damaged.", hint="Record or download it again.") from exc
            continue
        for frame in frames:
            done_s += frame.samples / frame.sample_rate
            yield frame
    if bad and not done_s:
        raise MediaError(f"{name} is damaged: nothing in it can be decoded.", hint="Record or download it again.")
    if bad:
        log.warning("%s is damaged: %d packets were left out.", name, bad)
    if said_s - done_s > max(0.5, 0.02 * said_s):
        log.warning("%s is cut short: it says %.1f s and holds %.1f s; all of that is used.", name, said_s, done_s)


def _refuse_other_files(url: str, flags: int, options: Mapping[str, str]) -> Any:
    raise MediaError("The file points at another file.", hint="Give a file that holds its own sound.")


@contextlib.contextmanager
def av_errors(name: str) -> Iterator[None]:
    """The one place where PyAV's errors become ours. It raises ValueError and IndexError too, for odd headers."""
    import av

    try:
        yield
    except MediaError:
        raise
    except (av.error.FFmpegError, ValueError, IndexError, OverflowError) as exc:
        raise MediaError(
            f"{name} is damaged or of a kind that cannot be decoded ({type(exc).__name__}).",
            hint="Record or download it again, or convert it to WAV.",
        ) from exc
