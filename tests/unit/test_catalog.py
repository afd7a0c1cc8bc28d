"""The catalogue: what we ship is valid, mistakes are named by file, model and key, a miss lists near names."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from lollms_local.catalog import Catalog, ModelSpec, Source, builtin_catalog_path
from lollms_local.engines import ENGINES, engine_class
from lollms_local.errors import CatalogError, ModelNotFound
from lollms_local.modalities.base import MODALITIES
from lollms_local.options import Options
from lollms_local.safety import is_safe_name

HEAD = "version: 1\nmodels:\n"
ROW = "- {id: net, modality: stt, engine: faster_whisper, source: 'hf:a/net'"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "models.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def shipped() -> Catalog:
    return Catalog.read(builtin_catalog_path())


def test_the_starter_set_needs_no_hub_and_every_file_of_it_is_pinned(shipped: Catalog) -> None:
    starter = shipped.select(model_set="starter")
    assert [s.id for s in starter] == ["smollm2-135m-instruct", "whisper-tiny.en", "piper-en-us-joe-medium"]
    for spec in starter:
        assert spec.origin.kind == "pypi" and spec.origin.version and spec.verified and spec.licence
        assert all(rule.sha256 and rule.bytes and rule.member for rule in spec.files)


def test_every_row_has_an_engine_of_its_modality_a_licence_and_files_that_are_let_in(shipped: Catalog) -> None:
    for spec in shipped:
        assert spec.engine in ENGINES, spec.id
        assert ENGINES[spec.engine].modality == spec.modality, spec.id
        assert spec.licence and spec.title, spec.id
        assert all(is_safe_name(rule.path.replace("*", "x")) for rule in spec.files), spec.id


def test_ids_are_unique(shipped: Catalog) -> None:
    text = builtin_catalog_path().read_text(encoding="utf-8")
    assert text.count("\n- id: ") == len(shipped)


def test_sources_are_read_in_their_three_forms() -> None:
    assert Source.parse("hf:org/repo@v1.0") == Source("hf", "org/repo", "v1.0")
    assert Source.parse("hf:org/repo") == Source("hf", "org/repo")
    assert Source.parse("pypi:some-name==0.1.2") == Source("pypi", "some-name", "0.1.2")
    assert Source.parse("path:/models/x.gguf") == Source("path", "/models/x.gguf")


@pytest.mark.parametrize(
    "text", ["", "hf:", "hf:norepo", "http://x/y", "pypi:a b", "path:", "hf:a/b/c", "pypi:--index==1"]
)
def test_anything_else_is_not_a_source(text: str) -> None:
    with pytest.raises(ValueError):
        Source.parse(text)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "c:x", "a\\x"])
def test_a_file_of_a_model_stays_in_its_folder(tmp_path: Path, path: str) -> None:
    file = written(tmp_path, f"{HEAD}{ROW}, files: ['{path}']}}\n")
    with pytest.raises(CatalogError, match="stay inside"):
        Catalog.read(file)


@pytest.mark.parametrize("model_id", ["../x", ".hidden", "a/b", "", "x" * 200])
def test_an_id_is_safe_as_a_folder_name(model_id: str) -> None:
    with pytest.raises(ValueError):
        ModelSpec(id=model_id, modality="stt", engine="faster_whisper", source="hf:a/b")


def test_a_mistyped_key_is_named_with_its_file_and_model(tmp_path: Path) -> None:
    file = written(tmp_path, f"{HEAD}{ROW}, licens: MIT}}\n")
    with pytest.raises(CatalogError) as caught:
        Catalog.read(file)
    assert str(file) in caught.value.message and "net" in caught.value.message and "licens" in caught.value.message


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="line 3"):
        Catalog.read(written(tmp_path, "version: 1\nmodels:\n- id: a: b\n"))


def test_yaml_cannot_build_python_objects(tmp_path: Path) -> None:
    with pytest.raises(CatalogError):
        Catalog.read(written(tmp_path, "models: !!python/object/apply:os.system ['true']\n"))


def test_a_users_file_adds_and_overrides_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        HEAD
        + "- {id: whisper-tiny.en, modality: stt, engine: faster_whisper, source: 'path:/mine'}\n"
        + "- {id: mine, modality: llm, engine: llama_cpp, source: 'path:/x.gguf'}\n",
    )
    catalog = Catalog.read(builtin_catalog_path(), file, tmp_path / "none.yaml")
    assert catalog.get("whisper-tiny.en").source == "path:/mine"
    assert "mine" in catalog and "smollm2-135m-instruct" in catalog


def test_a_miss_lists_near_names_of_that_modality(shipped: Catalog) -> None:
    with pytest.raises(ModelNotFound) as caught:
        shipped.get("wisper-tiny", "stt")
    assert "whisper-tiny.en" in caught.value.hint and "smollm2" not in caught.value.hint


def test_a_model_of_another_modality_is_refused_by_name(shipped: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="for stt, not for llm"):
        shipped.get("whisper-tiny.en", "llm")


def test_a_hub_name_finds_its_row_whatever_its_case() -> None:
    catalog = Catalog([ModelSpec(id="net", modality="stt", engine="faster_whisper", source="hf:Org/Net")])
    assert catalog.get("org/net").id == "net"


WORDS = {"llm": "chat", "tti": "image", "stt": "transcription", "tts": "speech", "ttv": "video", "ttm": "music"}


def test_defaults_of_every_row_are_options_that_exist(shipped: Catalog) -> None:
    """A mistyped default would be ignored without a word."""
    for spec in shipped:
        if spec.defaults:
            assert set(spec.defaults) <= option_names(spec), spec.id


def option_names(spec: ModelSpec) -> set[str]:
    """Names of all options of a model's modality, its engine's load options included."""
    module = importlib.import_module(f"lollms_local.modalities.{WORDS[spec.modality]}")
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Options)]
    return {name for c in (*classes, engine_class(spec.engine).load_options) for name in c.model_fields}


@pytest.mark.parametrize(
    ("name", "lacks"),
    [("starter", {"tti", "ttv", "ttm"}), ("cpu", {"ttv"}), *((f"gpu-{n}gb", set()) for n in (8, 12, 24))],
)
def test_a_named_set_brings_what_it_promises_and_nothing_is_in_a_set_that_nobody_can_name(
    shipped: Catalog, name: str, lacks: set[str]
) -> None:
    chosen = shipped.select(model_set=name)
    assert {spec.modality for spec in chosen} == set(MODALITIES) - lacks
    assert not any(spec.gated for spec in chosen), "a set that stops at a login is none"
    assert {s for spec in shipped for s in spec.sets} == {"starter", "cpu", "gpu-8gb", "gpu-12gb", "gpu-24gb"}
