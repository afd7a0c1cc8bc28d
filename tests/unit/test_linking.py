"""Links: the host sees what it could not see, nothing foreign is touched, everything can be taken back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lollms_local import client, linking
from lollms_local.errors import CatalogError, LocalModelError
from lollms_local.modalities.base import MODALITIES


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder shaped like the host's package, with none of our bindings."""
    folder = tmp_path / "site" / "lollms_client"
    for modality in MODALITIES:
        (folder / f"{modality}_bindings" / "lollms").mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder


def states(host: Path) -> set[str]:
    return {state.state for state in linking.status(host)}


def test_link_makes_every_binding_visible_and_unlink_takes_it_back(host: Path) -> None:
    assert states(host) == {"missing"}
    linked = linking.link(host)
    assert {state.state for state in linked} == {"linked"} and all(state.visible for state in linked)
    for state in linked:
        assert state.place == host / f"{state.modality}_bindings" / f"local_{state.modality}"
        assert (state.place / "__init__.py").is_file() and (state.place / "description.yaml").is_file()
    assert linking.link(host) == linked
    linking.unlink(host)
    assert states(host) == {"missing"}
    assert sorted(p.name for p in (host / "stt_bindings").iterdir()) == ["lollms"]


def test_a_foreign_folder_of_that_name_is_never_touched(host: Path) -> None:
    foreign = host / "stt_bindings" / "local_stt"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("BindingName = 'Mine'")
    assert [s.state for s in linking.link(host) if s.modality == "stt"] == ["foreign"]
    linking.unlink(host)
    assert (foreign / "__init__.py").read_text() == "BindingName = 'Mine'"


def test_a_link_to_somebody_elses_folder_is_foreign(host: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    place = host / "tti_bindings" / "local_tti"
    place.symlink_to(other)
    linking.unlink(host)
    assert place.is_symlink()
    (state,) = (s for s in linking.link(host) if s.modality == "tti")
    assert state.remedy == f"{place} is a link to {other}: move it away, then run: lollms-local link"
    place.rename(tmp_path / "away")
    assert {(s.state, s.remedy) for s in linking.link(host)} == {("linked", "")}


def test_a_link_to_a_checkout_that_is_gone_is_mended(host: Path, tmp_path: Path) -> None:
    (host / "llm_bindings" / "local_llm").symlink_to(tmp_path / "gone")
    assert [s.state for s in linking.status(host) if s.modality == "llm"] == ["stale"]
    assert {s.state for s in linking.link(host)} == {"linked"}


def test_an_installed_binding_is_left_alone(host: Path) -> None:
    """A wheel's own folder beside a checkout: pip owns it."""
    place = host / "stt_bindings" / "local_stt"
    shutil.copytree(linking.bindings_source("stt"), place)
    assert [s.state for s in linking.link(host) if s.modality == "stt"] == ["installed"]
    linking.unlink(host)
    assert (place / "__init__.py").is_file()


def test_without_the_right_to_make_links_the_folder_is_copied_and_kept_up_to_date(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(os, "symlink", refused)
    assert {s.state for s in linking.link(host)} == {"copied"}
    place = host / "stt_bindings" / "local_stt"
    (place / "description.yaml").write_text("old")
    assert [s.state for s in linking.status(host) if s.modality == "stt"] == ["stale"]
    assert {s.state for s in linking.link(host)} == {"copied"}
    linking.unlink(host)
    assert states(host) == {"missing"}


def test_a_host_that_cannot_be_written_gives_one_sentence_with_another_way(tmp_path: Path) -> None:
    file = tmp_path / "lollms_client"
    file.write_text("a file where a folder should be")
    with pytest.raises(LocalModelError, match="could not be made") as caught:
        linking.link(file)
    assert "connect()" in caught.value.hint


def test_the_host_is_found_without_being_imported() -> None:
    code = (
        "import sys; from lollms_local.linking import host_folder, status\n"
        "print(host_folder().name, 'lollms_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lollms_client False\n"


# --- connect() --------------------------------------------------------------------------------------------------------


def test_connect_gives_a_client_with_the_binding_also_from_a_source_tree() -> None:
    made = client.connect(transcription="whisper-tiny.en-that-is-not-there", stt_binding_config={"beam_size": 2})
    assert made.stt is not None and made.stt.binding_name == "local_stt"
    assert made.stt.config["beam_size"] == 2
    assert made.stt.model_name == "whisper-tiny.en-that-is-not-there"


def test_connect_with_all_six_needs_no_model_on_disk() -> None:
    made = client.connect(chat=True, images=True, transcription=True, speech=True, video=True, music=True)
    for modality in MODALITIES:
        binding = getattr(made, modality)
        assert binding is not None and binding.binding_name == f"local_{modality}"
        assert isinstance(binding.list_models(), list)


def test_connect_refuses_two_answers_to_one_question() -> None:
    with pytest.raises(CatalogError, match="different bindings"):
        client.connect(chat="a", llm_binding_name="ollama")
    with pytest.raises(CatalogError, match="different models"):
        client.connect(chat="a", llm_binding_config={"model_name": "b"})
