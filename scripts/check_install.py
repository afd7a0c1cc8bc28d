"""Checks of an installed wheel in a clean environment, without torch: `.ci/run` runs it with that environment's Python.

check_install.py current    the host's own discovery lists all six bindings, and a client can be built with each
check_install.py old        a host of the 1.7 series can build the speech-to-text binding
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

MODALITIES = ("llm", "tti", "stt", "tts", "ttv", "ttm")
HEAVY = ("torch", "diffusers", "transformers", "llama_cpp", "ctranslate2", "faster_whisper", "av")


def main(which: str) -> int:
    """Run the checks; prints what it saw; returns the number of failures."""
    failures: list[str] = []
    if importlib.util.find_spec("torch") is not None:
        failures.append("torch is installed here, so this environment proves nothing")
    print("lollms-client", importlib.metadata.version("lollms-client"))
    for modality in MODALITIES if which == "current" else ("stt",):
        failures += _check_construction(modality)
    if which == "current":
        failures += _check_discovery()
    loaded = [name for name in HEAVY if name in sys.modules]
    if loaded:
        failures.append(f"heavy libraries were imported: {loaded}")
    for failure in failures:
        print("FAILED:", failure)
    return len(failures)


def _check_construction(modality: str) -> list[str]:
    from lollms_client import LollmsClient

    client = LollmsClient(**{f"{modality}_binding_name": f"local_{modality}", f"{modality}_binding_config": {}})
    binding = getattr(client, modality)
    if binding is None:
        return [f"client.{modality} is None"]
    models = binding.list_models()
    print(f"client.{modality}:", type(binding).__name__, f"{len(models)} models")
    return [] if models else [f"client.{modality}.list_models() is empty"]


def _check_discovery() -> list[str]:
    from lollms_client.lollms_config_api import discover_bindings, get_binding_schema

    failures = []
    for modality in MODALITIES:
        names = [row["name"] for row in discover_bindings(modality)]
        found = f"local_{modality}" in names
        schema = get_binding_schema(f"local_{modality}", modality)
        print(f"discover_bindings({modality!r}):", "found" if found else names, f"{len(schema)} parameters")
        if not found:
            failures.append(f"discover_bindings({modality!r}) does not list local_{modality}")
        if not schema:
            failures.append(f"get_binding_schema({modality!r}) is empty")
    return failures


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
