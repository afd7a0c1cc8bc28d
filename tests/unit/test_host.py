"""LocalBinding against the host's real base class, with an engine that needs no library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lollms_client.lollms_stt_binding import LollmsSTTBinding

from lollms_local.engines import ENGINES
from lollms_local.errors import Cancelled, GenerationError, ModelNotDownloaded, ModelNotFound
from lollms_local.host import LocalBinding, edge
from lollms_local.modalities.base import Control, LoadOptions, Modality
from lollms_local.options import Options, choice
from lollms_local.runtime import Runtime
from tests.fakes import ROW, FakeTranscriber

CATALOGUE = """
version: 1
models:
  - {id: alpha, modality: stt, engine: fake, source: "path:{folder}/alpha", defaults: {loudness: 3}}
  - {id: beta, modality: stt, engine: fake, source: "path:{folder}/beta"}
  - {id: broken, modality: stt, engine: fake, source: "path:{folder}/broken"}
  - {id: absent, modality: stt, engine: fake, source: "hf:nobody/absent"}
"""


class CallOptions(Options):
    loudness: int = choice(1, "How loud.")


class FakeBinding(LocalBinding[FakeTranscriber], LollmsSTTBinding):  # type: ignore[misc]
    folder: ClassVar[Path] = Path(__file__).parent
    modality: ClassVar[Modality] = "stt"
    load_options = LoadOptions
    call_options = CallOptions
    default_model = "alpha"

    @edge
    def transcribe_audio(self, audio_source: Any = None, model: str | None = None, **kwargs: Any) -> str:
        def use(engine: FakeTranscriber, options: CallOptions, control: Control) -> str:
            return f"{engine.say(control)} {options.loudness}"

        return self.run(use, kwargs, model=model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    from lollms_local.catalog import Catalog
    from lollms_local.runtime import Settings, set_runtime

    for name, answer in {"alpha": "one", "beta": "two", "broken": "damaged"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "answer.txt").write_text(answer)
    (tmp_path / "models.yaml").write_text(CATALOGUE.replace("{folder}", str(tmp_path)))
    monkeypatch.setitem(ENGINES, "fake", ROW)
    FakeTranscriber.reset()
    runtime = Runtime(Settings(models_dir=str(tmp_path)), catalog=Catalog.read(tmp_path / "models.yaml"))
    before = set_runtime(runtime)
    yield tmp_path
    set_runtime(before)
    runtime.manager.close()


def test_nothing_is_loaded_before_the_first_use(folder: Path) -> None:
    binding = FakeBinding()
    assert FakeTranscriber.loads == 0
    assert not binding.has_active_resources()
    assert binding.transcribe_audio("x") == "one 3"
    assert binding.get_loaded_models() == ["alpha"]


def test_options_come_from_the_call_then_the_configuration_then_the_model(folder: Path) -> None:
    assert FakeBinding(loudness="7").transcribe_audio("x", loudness="9") == "one 9"
    assert FakeBinding(loudness="7").transcribe_audio("x", loudness=None) == "one 7"
    assert FakeBinding(loudness="None").transcribe_audio("x") == "one 3"
    assert FakeBinding().transcribe_audio("x", model="beta") == "two 1"


def test_a_zero_that_the_host_wrote_as_False_is_zero(folder: Path) -> None:
    assert FakeBinding(loudness="False").transcribe_audio("x") == "one 0"


def test_generation_reloads_what_the_host_has_unloaded(folder: Path) -> None:
    binding = FakeBinding(model_name="beta")
    assert binding.load_model("beta")
    assert binding.unload_model()
    assert binding.model_name == "beta"
    assert not binding.is_model_loaded("beta")
    assert FakeTranscriber.closes == 1
    assert binding.transcribe_audio("x") == "two 1"
    assert FakeTranscriber.loads == 2


def test_a_load_that_fails_is_False_with_the_reason_and_leaves_nothing(folder: Path) -> None:
    binding = FakeBinding(model_name="broken")
    assert binding.load_model("broken") is False
    assert "damaged" in (binding.get_last_error() or "")
    assert binding.get_loaded_models() == []
    assert binding.load_model("alpha") is True
    assert binding.get_last_error() is None


def test_a_model_that_is_not_here_names_the_command_that_fetches_it(folder: Path) -> None:
    binding = FakeBinding()
    assert binding.load_model("absent") is False
    assert "lollms-local models download absent" in (binding.get_last_error() or "")
    with pytest.raises(ModelNotDownloaded):
        binding.transcribe_audio("x", model="absent")


def test_an_unknown_model_lists_near_names(folder: Path) -> None:
    with pytest.raises(ModelNotFound, match="alpha"):
        FakeBinding(model_name="alpa").transcribe_audio("x")


@pytest.mark.parametrize("name", ["../alpha", "alpha/../../x", "..", "."])
def test_a_model_name_cannot_leave_the_models_folder(folder: Path, name: str) -> None:
    with pytest.raises(ModelNotFound):
        FakeBinding(model_name=name).transcribe_audio("x")


def test_error_mode_dict_gives_the_written_guide_s_form(folder: Path) -> None:
    answer = FakeBinding(error_mode="dict", model_name="nobody").transcribe_audio("x")
    assert isinstance(answer, dict)
    assert answer["status"] == "error"
    assert "nobody" in answer["message"]
    assert answer["hint"]


def test_two_bindings_share_one_copy_and_one_s_unload_does_not_break_the_other(folder: Path) -> None:
    FakeTranscriber.gate = threading.Event()
    first, second = FakeBinding(), FakeBinding()
    answers: list[str] = []
    worker = threading.Thread(target=lambda: answers.append(first.transcribe_audio("x")))
    worker.start()
    assert FakeTranscriber.entered.wait(30)
    assert second.is_model_loaded("alpha")
    assert second.unload_model("alpha") is False
    FakeTranscriber.gate.set()
    worker.join(30)
    assert answers == ["one 3"]
    assert FakeTranscriber.loads == 1
    assert second.unload_model("alpha") is True
    assert not first.is_model_loaded("alpha")


def test_cancel_stops_a_running_job_at_its_next_step_and_the_next_one_runs(folder: Path) -> None:
    FakeTranscriber.gate = threading.Event()
    binding = FakeBinding()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            binding.transcribe_audio("x")
        except Cancelled as exc:
            caught.append(exc)

    worker = threading.Thread(target=work)
    worker.start()
    assert FakeTranscriber.entered.wait(30)
    binding.cancel()
    FakeTranscriber.gate.set()
    worker.join(30)
    assert len(caught) == 1
    assert binding.transcribe_audio("x") == "one 3"


def test_a_caller_s_own_event_cancels_and_progress_has_every_front_end_s_keys(folder: Path) -> None:
    seen: list[dict[str, Any]] = []
    binding = FakeBinding()
    assert binding.transcribe_audio("x", progress_callback=seen.append) == "one 3"
    assert [p["completed"] for p in seen] == [0, 1, 2, 3]
    assert {"status", "message", "completed", "total", "percentage", "downloaded_size", "total_size"} <= set(seen[0])
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        binding.transcribe_audio("x", cancelled=stop)


def test_a_failed_generation_is_raised_and_remembered(folder: Path) -> None:
    (folder / "beta" / "answer.txt").write_text("fails")
    binding = FakeBinding(model_name="beta")
    with pytest.raises(GenerationError):
        binding.transcribe_audio("x")
    assert "failed" in (binding.get_last_error() or "")
    assert binding.unload_model() is True


def test_settings_change_all_or_nothing(folder: Path) -> None:
    binding = FakeBinding()
    assert binding.set_settings([{"name": "loudness", "value": "5"}, {"name": "model_name", "value": "beta"}])
    assert binding.transcribe_audio("x") == "two 5"
    assert binding.set_settings({"loudness": "very", "model_name": "alpha"}) is False
    assert binding.transcribe_audio("x") == "two 5"
    assert binding.get_settings()["loudness"] == 5


def test_secrets_are_never_given_out(folder: Path) -> None:
    assert "hf_token" not in FakeBinding(hf_token="hf_secret").get_settings()


def test_ps_tells_what_is_in_memory(folder: Path) -> None:
    binding = FakeBinding()
    assert binding.ps() == []
    binding.transcribe_audio("x")
    (row,) = binding.ps()
    assert (row["model_name"], row["is_loaded"], row["size_ram"], row["ref_count"]) == ("alpha", True, 1 << 20, 0)


def test_the_host_s_odd_arguments_do_no_harm(folder: Path) -> None:
    binding = FakeBinding(
        binding_name="x", debug="True", wait_for_server=False, bindings_other_port="1", host_address=None
    )
    assert binding.binding_name == Path(__file__).parent.name
    assert binding.transcribe_audio("x", language="en", nonsense=object()) == "one 3"


def test_a_download_by_number_outside_the_zoo_is_a_plain_refusal(folder: Path) -> None:
    binding = FakeBinding()
    assert [row["model_name"] for row in binding.get_zoo()] == ["absent"]
    assert binding.download_from_zoo(7)["status"] is False
    assert binding.pull_model("nobody")["status"] is False
