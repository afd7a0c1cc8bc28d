"""Errors: one root, the builtin bases that callers know, a hint, and no word that makes the host retry."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

import lollms_local
from lollms_local import errors
from lollms_local.errors import LocalModelError

CLASSES = [getattr(errors, name) for name in errors.__all__]
BASES = {
    "CatalogError": ValueError, "ModelNotFound": LookupError, "ModelNotDownloaded": FileNotFoundError,
    "EngineNotInstalled": ImportError, "DeviceNotAvailable": RuntimeError, "InsufficientMemory": MemoryError,
    "ModelBusy": RuntimeError, "LoadError": RuntimeError, "UnsupportedRequest": ValueError, "MediaError": ValueError,
    "DownloadError": RuntimeError, "GenerationError": RuntimeError,
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_one_root_a_message_and_a_hint(cls: type[LocalModelError]) -> None:
    error = cls("It broke.", hint="Mend it.")
    assert isinstance(error, LocalModelError)
    assert (error.message, error.hint, str(error)) == ("It broke.", "Mend it.", "It broke. Mend it.")
    assert str(cls("It broke.")) == "It broke."


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_callers_can_catch_the_builtin_they_know(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), base)


def test_cancelled_is_no_failure_of_a_builtin_kind() -> None:
    assert errors.Cancelled.__mro__[1:3] == (LocalModelError, Exception)


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_survive_a_trip_to_another_process(cls: type[LocalModelError]) -> None:
    back = pickle.loads(pickle.dumps(cls("It broke.", hint="Mend it.")))
    assert type(back) is cls and (back.message, back.hint) == ("It broke.", "Mend it.")


def test_no_message_in_the_library_has_a_word_by_which_the_host_retries() -> None:
    """The host takes these for a network fault, tries three times and hides the real reason."""
    words = re.compile(r"timeout|timed out|connection|unavailable", re.IGNORECASE)
    call = re.compile(
        r"(?:Error|Found|Downloaded|Installed|Available|Memory|Busy|Request|Cancelled)\(\s*f?\"([^\"]*)\""
    )
    found = []
    for file in Path(lollms_local.__file__).parent.rglob("*.py"):
        for message in call.findall(file.read_text(encoding="utf-8")):
            if words.search(message):
                found.append(f"{file.name}: {message}")
    assert found == []
