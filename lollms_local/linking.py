"""Make the host see our bindings after an editable install, in a split site directory, in a source tree.

The host finds a binding only as a folder `lollms_client/<m>_bindings/<name>` of its own package. A symbolic link there
is enough, survives the host's upgrades, and is removable. Where links are not allowed (Windows), it is copied.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import LocalModelError
from .modalities.base import MODALITIES, Modality

__all__ = ["BindingState", "bindings_source", "find_bindings_source", "host_folder", "link", "status", "unlink"]

State = Literal["installed", "linked", "copied", "stale", "missing", "foreign"]
_MARKER = ".lollms_local_copy"


@dataclass(frozen=True)
class BindingState:
    """One binding as the host would find it.

    Attributes:
        modality: which.
        place: the folder in the host's package.
        state: "installed" (our wheel put it there), "linked", "copied" (by `link`), "stale" (a link to where
            nothing is, or a copy that differs from its origin), "missing", or "foreign" (something else of that name).
    """

    modality: Modality
    place: Path
    state: State

    @property
    def visible(self) -> bool:
        """True if the host can use it."""
        return self.state in ("installed", "linked", "copied")

    @property
    def remedy(self) -> str:
        """What the user can do about it; empty where nothing need be done."""
        if self.visible:
            return ""
        if self.state == "foreign":
            what = f"a link to {self.place.readlink()}" if self.place.is_symlink() else "a folder of somebody else's"
            return f"{self.place} is {what}: move it away, then run: lollms-local link"
        return "lollms-local link"


def host_folder() -> Path | None:
    """The host's package folder, or None if lollms-client is not installed. The host is not imported to find out."""
    spec = importlib.util.find_spec("lollms_client")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def bindings_source(modality: Modality) -> Path:
    """Our own folder of a binding: in the source tree, or where our wheel put it.

    Raises:
        LocalModelError: it is in neither place.
    """
    found = find_bindings_source(modality)
    if found is None:
        raise LocalModelError(f"The files of local_{modality} are missing.", hint="Install lollms-local again.")
    return found


def find_bindings_source(modality: Modality) -> Path | None:
    """The same, or None where it is in neither place."""
    above = Path(__file__).resolve().parent.parent
    name = f"local_{modality}"
    places = (above / "bindings" / name, above / "lollms_client" / f"{modality}_bindings" / name)
    return next((folder for folder in places if (folder / "__init__.py").is_file()), None)


def status(host: Path | None = None) -> list[BindingState]:
    """How the host would find each of the six bindings.

    Args:
        host: the host's package folder; default: the installed one.

    Raises:
        LocalModelError: the host is not installed.
    """
    return [_state(modality, _required(host)) for modality in MODALITIES]


def link(host: Path | None = None) -> list[BindingState]:
    """Put a link (or a copy, where links are not allowed) for every binding that the host cannot see.

    A foreign folder stays as it is.

    Raises:
        LocalModelError: the host is not installed, or its folder cannot be written.
    """
    host = _required(host)
    for modality in MODALITIES:
        state = _state(modality, host)
        if state.state in ("missing", "stale"):
            try:
                _put(bindings_source(modality), state.place)
            except OSError as exc:
                raise LocalModelError(
                    f"{state.place} could not be made: {exc.strerror or exc}.",
                    hint="Get the right to write there, or use lollms_local.client.connect(), which needs no link.",
                ) from exc
    return status(host)


def unlink(host: Path | None = None) -> list[BindingState]:
    """Remove what `link` made, and nothing else.

    Raises:
        LocalModelError: the host is not installed, or its folder cannot be written.
    """
    host = _required(host)
    for modality in MODALITIES:
        state = _state(modality, host)
        try:
            if state.state in ("linked", "copied", "stale"):
                _clear(state.place)
        except OSError as exc:
            raise LocalModelError(f"{state.place} could not be removed: {exc.strerror or exc}.") from exc
    return status(host)


def _required(host: Path | None) -> Path:
    folder = host or host_folder()
    if folder is None:
        raise LocalModelError("The LoLLMS client is not installed here.", hint="Run: pip install lollms-client")
    return folder


def _state(modality: Modality, host: Path) -> BindingState:
    place = host / f"{modality}_bindings" / f"local_{modality}"
    return BindingState(modality, place, _judge(place, find_bindings_source(modality)))


def _judge(place: Path, source: Path | None) -> State:
    if place.is_symlink():
        if not place.exists():
            return "stale"
        return "linked" if source is not None and place.resolve() == source.resolve() else "foreign"
    if not place.exists():
        return "missing"
    if source is not None and place.resolve() == source.resolve():
        return "installed"
    if (place / _MARKER).is_file():
        return "copied" if source is not None and _same_files(source, place) else "stale"
    # a wheel of ours in the host's site directory, seen from another checkout
    return "installed" if _names_us(place / "__init__.py") else "foreign"


def _same_files(source: Path, place: Path) -> bool:
    names = [p.name for p in source.iterdir() if p.is_file()]
    return all((place / n).is_file() and (place / n).read_bytes() == (source / n).read_bytes() for n in names)


def _names_us(init: Path) -> bool:
    return init.is_file() and "lollms_local" in init.read_text(encoding="utf-8", errors="replace")


def _put(source: Path, place: Path) -> None:
    _clear(place)
    place.parent.mkdir(exist_ok=True)
    try:
        os.symlink(source, place, target_is_directory=True)
    except (OSError, NotImplementedError) as exc:
        if os.name != "nt" and not isinstance(exc, NotImplementedError):
            raise
        # Windows lets only some users make links
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        (place / _MARKER).write_text(str(source), encoding="utf-8")


def _clear(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
