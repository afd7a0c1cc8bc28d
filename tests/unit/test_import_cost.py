"""Importing is light: no heavy library comes in with lollms_local, with a binding, or with the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lollms_local.linking import bindings_source
from lollms_local.modalities.base import MODALITIES, Modality

HEAVY = """
    torch diffusers transformers accelerate llama_cpp ctranslate2 faster_whisper av soundfile piper onnxruntime
    safetensors huggingface_hub tokenizers PIL scipy
"""


def loaded_by(code: str) -> set[str]:
    """Heavy modules that are there after running code in a fresh process."""
    tail = f"\nimport json, sys; print(json.dumps([m for m in {HEAVY.split()!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_and_its_runtime_bring_in_nothing_heavy() -> None:
    assert loaded_by("import lollms_local; from lollms_local.runtime import get_runtime; get_runtime()") == set()


def test_listing_models_and_the_command_line_bring_in_nothing_heavy() -> None:
    code = (
        "from lollms_local.cli import main\n"
        "try: main(['models', 'list', '--json'])\n"
        "except SystemExit: pass\n"
        "try: main(['doctor', '--json'])\n"
        "except SystemExit: pass"
    )
    assert loaded_by(code) == set()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_binding_brings_in_no_more_than_the_host_does(modality: Modality) -> None:
    host = f"from lollms_client.lollms_{modality}_binding import *\n"
    source = bindings_source(modality)
    binding = host + (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('local_{modality}', {str(source / '__init__.py')!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "binding = getattr(module, module.BindingName)(); binding.list_models()"
    )
    assert loaded_by(binding) <= loaded_by(host)


def test_a_binding_folder_holds_its_two_files_and_nothing_else() -> None:
    for modality in MODALITIES:
        names = {p.name for p in Path(bindings_source(modality)).iterdir()} - {"__pycache__"}
        assert names == {"__init__.py", "description.yaml"}
