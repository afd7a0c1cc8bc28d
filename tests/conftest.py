"""Fixtures that every test may use: the real starter models, and a Runtime of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test imports torch or llama.cpp: nothing here may reach a hub, and telemetry has no business in a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lollms_local import weights
from lollms_local.catalog import Catalog, builtin_catalog_path
from lollms_local.runtime import Runtime, Settings, set_runtime

STARTER = ("whisper-tiny.en", "smollm2-135m-instruct", "piper-en-us-joe-medium")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder with the real starter models."""
    folder = weights.models_dir()
    catalog = Catalog.read(builtin_catalog_path())
    missing = [name for name in STARTER if not weights.is_downloaded(catalog.get(name), folder)]
    if missing:
        pytest.fail(f"{', '.join(missing)} not in {folder}; run: python3 scripts/bootstrap.py test", pytrace=False)
    return folder


@pytest.fixture
def runtime(models_dir: Path) -> Iterator[Runtime]:
    """A fresh Runtime over the real starter models; everything it loaded is freed afterwards."""
    yield from _installed(Runtime(Settings(models_dir=str(models_dir))))


@pytest.fixture
def empty_runtime(tmp_path: Path) -> Iterator[Runtime]:
    """A fresh Runtime over an empty models folder: nothing is downloaded there."""
    folder = tmp_path / "models"
    folder.mkdir()
    yield from _installed(Runtime(Settings(models_dir=str(folder))))


def _installed(runtime: Runtime) -> Iterator[Runtime]:
    before = set_runtime(runtime)
    try:
        yield runtime
    finally:
        set_runtime(before)
        runtime.manager.close()
