"""All six bindings through every door of the real host: listings, wizard's sources, configuration files, clients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lollms_client import LollmsClient, lollms_config_api
from lollms_client.lollms_config_cli_env import get_client_from_env

from lollms_local.modalities.base import MODALITIES
from lollms_local.runtime import Runtime
from tests.tiny import diffusion, image_models, video
from tests.tiny.musicgen import build_musicgen

TOP = Path(__file__).parents[2]
CALLS = {
    "llm": "client.generate_text('hello')",
    "tti": "client.generate_image('a heron')",
    "stt": "client.stt.transcribe_audio(b'RIFF')",
    "tts": "client.generate_audio('hello')",
    "ttv": "client.generate_video('a heron')",
    "ttm": "client.generate_music('a waltz')",
}


def bound(modality: str, **config: Any) -> Any:
    """A client with only this modality, and its binding."""
    client = LollmsClient(
        **{f"{modality}_binding_name": f"local_{modality}", f"{modality}_binding_config": config},
        **({} if modality == "llm" else {"llm_binding_name": ""}),
    )
    return getattr(client, modality)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_host_lists_the_binding_and_its_parameters(modality: str) -> None:
    names = [row["name"] for row in lollms_config_api.discover_bindings(modality)]
    assert f"local_{modality}" in names
    schema = lollms_config_api.get_binding_schema(f"local_{modality}", modality)
    parameters = {row["name"]: row for row in schema}
    assert {"models_path", "device", "dtype", "error_mode"} <= set(parameters)
    assert all(row["type"] in ("str", "int", "float", "bool") and row["default"] is not None for row in schema)
    assert all(row["description"] for row in schema)


@pytest.mark.parametrize("modality", MODALITIES)
def test_description_yaml_says_what_the_code_reads(modality: str) -> None:
    sys.path.insert(0, str(TOP / "scripts"))
    try:
        from describe_bindings import text_for
    finally:
        sys.path.remove(str(TOP / "scripts"))
    folder = TOP / "bindings" / f"local_{modality}"
    text = (folder / "description.yaml").read_text(encoding="utf-8")
    assert text == text_for(folder), "run: python scripts/describe_bindings.py"
    data = yaml.safe_load(text)
    names = [row["name"] for row in data["global_input_parameters"] + data["model_input_parameters"]]
    assert [row["name"] for row in data["input_parameters"]] == names
    assert len(set(names)) == len(names)
    assert not any(name.endswith("_binding_name") or name != name.lower() for name in names)


def test_the_page_of_options_says_what_the_code_reads() -> None:
    sys.path.insert(0, str(TOP / "scripts"))
    try:
        from describe_bindings import options_page
    finally:
        sys.path.remove(str(TOP / "scripts"))
    text = (TOP / "docs" / "options.md").read_text(encoding="utf-8")
    assert text == options_page(), "run: python scripts/describe_bindings.py"


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_client_is_built_without_loading_and_lists_models(modality: str, runtime: Runtime) -> None:
    binding = bound(modality)
    assert binding is not None
    assert binding.is_local() is True
    assert binding.has_active_resources() is False
    models = binding.list_models()
    assert models and len(models) == len(binding.listModels())
    assert binding.description["title"]
    assert binding.ps() == []
    assert isinstance(binding.get_settings(), dict)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_missing_model_does_not_cost_the_client_and_says_how_to_get_it(modality: str, empty_runtime: Runtime) -> None:
    name = empty_runtime.catalog.select(modality=modality)[0].id  # type: ignore[arg-type]
    binding = bound(modality, model_name=name)
    assert binding.load_model(name) is False
    assert f"lollms-local models download {name}" in binding.get_last_error()
    assert binding.load_model("no-such-model-at-all") is False
    assert "no-such-model-at-all" in binding.get_last_error()


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_its_library_the_binding_stands_and_names_the_extra(modality: str, tmp_path: Path) -> None:
    script = f"""
import sys
BLOCKED = {{"torch", "transformers", "diffusers", "llama_cpp", "faster_whisper", "ctranslate2", "piper"}}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in BLOCKED else real(name, package)
sys.meta_path.insert(0, Blocker())
from lollms_client import LollmsClient
client = LollmsClient(llm_binding_name={"local_llm" if modality == "llm" else ""!r}, debug=False,
                      **({{}} if {modality!r} == "llm" else {{"{modality}_binding_name": "local_{modality}"}}))
assert client.{modality}.list_models()
from lollms_local.errors import EngineNotInstalled
try:
    {CALLS[modality]}
except EngineNotInstalled as exc:
    assert "pip install 'lollms-local[" in str(exc), exc
    print("refused:", exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env=_environment(tmp_path),
    )
    assert "refused:" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


def _environment(tmp_path: Path) -> dict[str, str]:
    import os

    return {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(TOP), *filter(None, sys.path)])}


def _effective(binding: Any) -> dict[str, Any]:
    return dict(sorted(binding.get_settings().items()))


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_setting_survives_the_host_s_configuration_files(
    modality: str, tmp_path: Path, empty_runtime: Runtime
) -> None:
    plain = bound(modality)
    wanted = {name: _other(value) for name, value in _schema_defaults(modality).items()}
    wanted = {k: v for k, v in wanted.items() if v is not None and k not in ("hf_token", "models_path", "model_name")}
    direct = bound(modality, **wanted)
    config: dict[str, str] = {}
    lollms_config_api.set_binding_params(config, modality, "mine", f"local_{modality}", wanted)
    # the host's own helper writes "true" for False: what a user chose is restored as the wizard writes it
    for name, value in wanted.items():
        if value is False:
            config[f"{modality.upper()}_BINDINGS_MINE_{name.upper()}"] = "false"
    for suffix in ("yaml", "json"):
        path = lollms_config_api.save_config_map(config, tmp_path / f"config.{suffix}")
        loaded = lollms_config_api.load_config_map(path, global_config=False)
        client = lollms_config_api.build_client_from_map(loaded, llm=modality == "llm", **_enable(modality))
        found = getattr(client, modality)
        assert found is not None
        assert _effective(found) == _effective(direct), suffix
        assert _effective(found) != _effective(plain)


def _enable(modality: str) -> dict[str, bool]:
    return {} if modality == "llm" else {modality: True}


def _schema_defaults(modality: str) -> dict[str, Any]:
    rows = lollms_config_api.get_binding_schema(f"local_{modality}", modality)
    data = yaml.safe_load((TOP / "bindings" / f"local_{modality}" / "description.yaml").read_text(encoding="utf-8"))
    choices = {row["name"]: row["options"] for row in data["input_parameters"] if row.get("options")}
    return {row["name"]: choices.get(row["name"], row["default"]) for row in rows}


def _other(default: Any) -> Any:
    """A legal value that is not the default; None where nothing safe is known."""
    if isinstance(default, list):
        return default[-1]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return 1 if default <= 0 else default // 2 if default > 1 else None
    if isinstance(default, float):
        return 1.0 if default <= 0 else default / 2
    return None


@pytest.mark.parametrize("modality", MODALITIES)
def test_get_client_from_env_builds_it(modality: str, tmp_path: Path, empty_runtime: Runtime) -> None:
    config: dict[str, str] = {}
    lollms_config_api.set_binding_params(config, modality, "mine", f"local_{modality}", {"idle_unload_s": 7})
    path = lollms_config_api.save_config_map(config, tmp_path / "config.yaml")
    client = get_client_from_env(
        conf_file=path, run_wizard_if_fail=False, **{"create_llm": False, f"create_{modality}": True}
    )
    assert getattr(client, modality).get_settings()["idle_unload_s"] == 7


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_wizard_s_model_list_works(modality: str, empty_runtime: Runtime) -> None:
    import importlib

    import lollms_client

    manager = importlib.import_module(f"lollms_client.lollms_{modality}_binding")
    folder = Path(lollms_client.__file__).parent / f"{modality}_bindings"
    assert manager.list_binding_models(f"local_{modality}", {}, folder)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("verb", ["pull_model", "install_model"])
def test_a_download_that_cannot_be_is_a_plain_answer(modality: str, verb: str, empty_runtime: Runtime) -> None:
    result = getattr(bound(modality), verb)("no-such-model-at-all", progress_callback=print)
    assert result["status"] is False
    assert "no-such-model-at-all" in result["message"]
    result = getattr(bound(modality), verb)("no-such-model-at-all", callback=print)
    assert result["status"] is False


def test_six_modalities_share_one_process_without_a_model(empty_runtime: Runtime) -> None:
    config = {f"{m}_binding_name": f"local_{m}" for m in MODALITIES}
    client = LollmsClient(**config)
    assert all(getattr(client, m) is not None for m in MODALITIES)
    assert empty_runtime.manager.snapshot() == []


def _alone(modality: str, models: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What running the binding's file by itself prints."""
    return subprocess.run(
        [sys.executable, str(TOP / "bindings" / f"local_{modality}" / "__init__.py")],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**_environment(cwd), "LOLLMS_LOCAL_MODELS_DIR": str(models), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_binding_s_file_alone_says_how_to_get_its_model(modality: str, tmp_path: Path) -> None:
    done = _alone(modality, tmp_path / "none", tmp_path)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "lollms-local models download" in done.stdout


@pytest.mark.parametrize("modality", ["tti", "ttv", "ttm"])
def test_the_binding_s_file_alone_makes_what_it_is_for(modality: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    if modality == "tti":
        image_models.copy("flux", models / "tiny")
    elif modality == "ttv":
        diffusion.save(video.FAMILIES["wan"](), models / "tiny")
    else:
        build_musicgen(models / "tiny")
    done = _alone(modality, models, tmp_path)
    name = f"local_{modality}_self_test." + {"tti": "png", "ttv": "mp4", "ttm": "wav"}[modality]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"{name}: {(tmp_path / name).stat().st_size} bytes" in done.stdout
