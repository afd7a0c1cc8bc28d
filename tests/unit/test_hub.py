"""Downloads from a hub, by the real client against a server on the loopback: faults, refusals, what is chosen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lollms_local import downloads, hub_transfer, weights
from lollms_local.catalog import FileRule, ModelSpec
from lollms_local.downloads import DownloadProgress, PlannedFile
from lollms_local.errors import Cancelled, DownloadError
from lollms_local.hub_choice import usual_files
from lollms_local.hub_source import ASK_TRIES, TRIES, HubSource

from .hub_server import COMMIT, FakeHub, serve

CONTENT = random.Random(5).randbytes(3_000_000)
FILES = {"config.json": b'{"model_type": "bark"}', "model.safetensors": CONTENT, "README.md": b"# net"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that the user may reach."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with serve(FakeHub(dict(FILES))) as running:
        yield running


def net(**more: Any) -> ModelSpec:
    return ModelSpec(**{"id": "net", "modality": "tts", "engine": "bark", "source": "hf:some/net", **more})


def fetch(hub: FakeHub, folder: Path, spec: ModelSpec | None = None, **more: Any) -> Path:
    pauses: list[float] = more.pop("pauses", [])
    source = HubSource(hub.address, pause=pauses.append, stall_s=more.pop("stall_s", 0.0))
    return downloads.download(spec or net(), folder, source=source, **more)


def test_what_the_engine_needs_is_fetched_and_its_commit_recorded(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[DownloadProgress] = []
    folder = fetch(hub, tmp_path, on_progress=seen.append)
    assert sorted(p.name for p in folder.iterdir()) == [".lollms_local.json", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert COMMIT in (folder / ".lollms_local.json").read_text()
    assert weights.verify(net(), tmp_path) == []
    done = [p.done_bytes for p in seen if p.stage == "fetch"]
    whole = {p.file: p.file_total_bytes for p in seen if p.stage == "fetch" and p.file_done_bytes == p.file_total_bytes}
    assert whole == {"config.json": len(FILES["config.json"]), "model.safetensors": len(CONTENT)}
    assert all(0 <= p.file_done_bytes <= p.file_total_bytes for p in seen if p.stage == "fetch")
    assert done == sorted(done) and done[-1] == seen[-1].total_bytes == len(CONTENT) + len(FILES["config.json"])


def test_a_transfer_that_is_cut_off_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [100_000_000, 1_200_000, 700_000]  # the first answer is config.json, whole
    folder = fetch(hub, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert hub.ranges, "it began again from the start"


def test_cuts_at_random_places_never_leave_wrong_bytes(hub: FakeHub, tmp_path: Path) -> None:
    chance = random.Random(7)
    for round_ in range(4):
        hub.cuts = [chance.randrange(0, len(CONTENT)) for _ in range(chance.randrange(1, 5))]
        folder = fetch(hub, tmp_path / str(round_))
        assert (folder / "model.safetensors").read_bytes() == CONTENT
        assert weights.verify(net(), tmp_path / str(round_)) == []


def test_a_part_outlives_its_process_and_is_continued(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(progress: DownloadProgress) -> None:
        if progress.done_bytes > 2_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(hub, tmp_path, on_progress=killed)
    assert not weights.is_downloaded(net(), tmp_path)
    assert hub.ranges == []
    folder = fetch(hub, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    (resumed,) = hub.ranges
    assert int(resumed.removeprefix("bytes=").rstrip("-")) >= 1_900_000


def test_a_fetch_that_gives_up_is_not_installed_and_the_next_one_completes_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"model.safetensors": CONTENT}
    hub.cuts = [0] * 200  # nothing is gained
    pauses: list[float] = []
    with pytest.raises(DownloadError, match=f"after {TRIES} tries") as caught:
        fetch(hub, tmp_path, pauses=pauses)
    assert "run it again" in caught.value.hint and len(pauses) == TRIES - 1
    assert not weights.is_downloaded(net(), tmp_path)
    hub.cuts = []
    folder = fetch(hub, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_wrong_bytes_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.wrong = {"model.safetensors"}
    with pytest.raises(DownloadError, match="not what was published"):
        fetch(hub, tmp_path)
    assert not (tmp_path / "net").exists()
    hub.wrong = {"config.json"}
    other = tmp_path / "other"
    with pytest.raises(DownloadError, match="not what the hub announced"):
        fetch(hub, other)
    hub.wrong = set()
    assert fetch(hub, other) == other / "net"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_again(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.statuses = [status, status]
    assert (fetch(hub, tmp_path) / "model.safetensors").read_bytes() == CONTENT


def test_a_gated_model_says_what_to_do_and_a_token_opens_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated = True
    with pytest.raises(DownloadError, match="gated") as caught:
        fetch(hub, tmp_path)
    assert "https://huggingface.co/some/net" in caught.value.hint and "HF_TOKEN" in caught.value.hint
    assert fetch(hub, tmp_path, token="good") == tmp_path / "net"


def test_a_model_that_is_not_there_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="has no model some/other"):
        fetch(hub, tmp_path, net(source="hf:some/other"))
    missing = net(files=(FileRule(path="nothing.safetensors"),))
    with pytest.raises(DownloadError, match=r"has no file 'nothing\.safetensors'"):
        fetch(hub, tmp_path, missing)


def test_no_hub_at_all_is_one_sentence_without_words_that_make_the_host_retry(tmp_path: Path, hub: FakeHub) -> None:
    pauses: list[float] = []
    dead = FakeHub({}, address="http://127.0.0.1:9")
    with pytest.raises(DownloadError) as caught:
        fetch(dead, tmp_path, pauses=pauses)
    assert len(pauses) == ASK_TRIES - 1
    assert "cannot be reached" in str(caught.value)
    assert not any(word in str(caught.value).lower() for word in ("timeout", "timed out", "connection", "unavailable"))


FORBIDDEN = ("timeout", "timed out", "connection", "unavailable")


def test_a_transfer_that_falls_silent_is_noticed_and_goes_on_in_another(hub: FakeHub, tmp_path: Path) -> None:
    hub.silences = [100_000_000, 1_000_000, 500_000]  # the first answer is config.json, whole
    folder = fetch(hub, tmp_path, stall_s=1.0)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert hub.ranges == ["bytes=1000000-", "bytes=1500000-"], "what had come was fetched again"


def test_a_server_that_stays_silent_in_the_middle_ends_with_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"model.safetensors": CONTENT}
    hub.silences = [1_000_000] + [0] * 100
    pauses: list[float] = []
    with pytest.raises(DownloadError, match=f"after {TRIES} tries: nothing came for 0.5 seconds") as caught:
        fetch(hub, tmp_path, stall_s=0.5, pauses=pauses)
    assert len(pauses) >= TRIES, "the first try brought something, so it does not count"
    assert not any(word in str(caught.value).lower() for word in FORBIDDEN)
    assert not weights.is_downloaded(net(), tmp_path)


def test_a_server_that_accepts_and_says_nothing_ends_with_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    hub.silent = True
    with pytest.raises(DownloadError, match=r"after 3 tries: nothing came for 0\.2 seconds") as caught:
        fetch(hub, tmp_path, stall_s=0.2)
    assert not any(word in str(caught.value).lower() for word in FORBIDDEN)


def test_the_users_own_limit_of_silence_is_that_of_the_hubs_client(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.25)
    hub.silent = True
    with pytest.raises(DownloadError, match=r"nothing came for 0\.25 seconds"):
        fetch(hub, tmp_path)


def test_a_server_that_trickles_is_given_up_but_a_slow_one_is_not(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {"model.safetensors": CONTENT}
    hub.piece_bytes, hub.piece_s = 200_000, 0.05
    assert fetch(hub, tmp_path / "slow", stall_s=2.0) == tmp_path / "slow" / "net"
    monkeypatch.setattr(hub_transfer, "SLOW_WINDOWS", 0.1)
    hub.piece_bytes = 10
    with pytest.raises(DownloadError, match="next to nothing came"):
        fetch(hub, tmp_path / "trickle", stall_s=2.0)


def test_a_server_that_knows_no_ranges_sends_the_whole_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.ignores_ranges = True
    hub.cuts = [100_000_000, 1_200_000]
    assert (fetch(hub, tmp_path) / "model.safetensors").read_bytes() == CONTENT


def test_more_bytes_than_announced_are_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    hub.excess = 50_000_000
    with pytest.raises(DownloadError, match="did not come whole"):
        fetch(hub, tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*")) < len(CONTENT)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "", r"refuses some/net \(status 401\)"),
        (401, "RepoNotFound", "has no model some/net, or your token may not see it"),
        (401, "GatedRepo", "gated"),
        (403, "", r"refuses some/net \(status 403\)"),
        (404, "RepoNotFound", "has no model some/net"),
        (404, "RevisionNotFound", "no such revision"),
        (410, "", "status 410"),
        (429, "", "after 3 tries: the hub answered with status 429"),
        (500, "", "after 3 tries: the hub answered with status 500"),
    ],
)
def test_a_hub_that_refuses_is_one_sentence_and_a_hint(
    hub: FakeHub, tmp_path: Path, status: int, code: str, says: str
) -> None:
    hub.status, hub.error_code = status, code
    pauses: list[float] = []
    with pytest.raises(DownloadError, match=says) as caught:
        fetch(hub, tmp_path, pauses=pauses)
    assert caught.value.hint and not any(word in str(caught.value).lower() for word in FORBIDDEN)
    assert len(pauses) == (ASK_TRIES - 1 if status in (429, 500) else 0), "a refusal was asked again"


@pytest.mark.parametrize(("status", "says"), [(401, "401|no model"), (403, "403"), (404, "404|no such"), (500, "500")])
def test_a_file_that_is_refused_is_one_sentence(hub: FakeHub, tmp_path: Path, status: int, says: str) -> None:
    hub.statuses = [status] * 100
    with pytest.raises(DownloadError, match=says) as caught:
        fetch(hub, tmp_path)
    assert caught.value.hint and not weights.is_downloaded(net(), tmp_path)


def test_an_address_without_a_scheme_is_said_at_once(hub: FakeHub, tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(DownloadError, match="not one that a program can open") as caught:
        fetch(FakeHub({}, address="mirror.example"), tmp_path, pauses=pauses)
    assert "HF_ENDPOINT" in caught.value.hint and not pauses


def test_offline_means_that_the_hub_is_not_asked(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        fetch(hub, tmp_path)
    assert hub.gets == 0


def test_a_load_in_another_thread_does_not_end_a_download(hub: FakeHub, tmp_path: Path) -> None:
    """While a model loads the client is kept off the network; the download waits for the end of that and goes on."""
    from lollms_local.offline import offline

    block = offline()
    block.__enter__()
    source = HubSource(hub.address, pause=lambda seconds: block.__exit__(None, None, None))
    assert downloads.download(net(), tmp_path, source=source) == tmp_path / "net"


def test_the_caller_can_stop_a_transfer(hub: FakeHub, tmp_path: Path) -> None:
    def stop(progress: DownloadProgress) -> None:
        if progress.done_bytes > len(FILES["config.json"]):
            raise Cancelled()

    with pytest.raises(Cancelled):
        fetch(hub, tmp_path, on_progress=stop)
    assert not (tmp_path / "net").exists()


def test_names_that_lead_out_of_the_folder_are_not_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["../evil.json"] = b"{}"
    hub.files["a/.git/config.json"] = b"{}"
    folder = fetch(hub, tmp_path / "models")
    assert not list(tmp_path.rglob("evil.json")) and not (folder / "a").exists()


# --- which files: pure ---------------------------------------------------------------------------------------------


def chosen(engine: str, modality: str, *names: str, variant: str = "") -> list[str]:
    spec = ModelSpec.model_validate(
        {"id": "x", "modality": modality, "engine": engine, "source": "hf:a/b", "variant": variant}
    )
    return [f.path for f in usual_files(spec, [PlannedFile(n, 10 + len(n)) for n in names])]


def test_of_many_quantisations_one_is_taken_with_all_its_parts() -> None:
    names = [
        "x-Q2_K.gguf",
        "x-Q4_K_M-00001-of-00002.gguf",
        "x-Q4_K_M-00002-of-00002.gguf",
        "x-Q8_0.gguf",
    ]
    assert chosen("llama_cpp", "llm", *names) == names[1:3]
    assert chosen("llama_cpp", "llm", "x-IQ1_S.gguf", "x-Q3_K_LARGE.gguf") == ["x-IQ1_S.gguf"]


def test_a_model_that_can_see_comes_with_one_projector() -> None:
    projectors = ["mmproj-x-BF16.gguf", "mmproj-x-F16.gguf", "mmproj-x-Q8_0.gguf"]
    assert chosen("llama_cpp", "llm", "x-Q4_K_M.gguf", *projectors) == ["x-Q4_K_M.gguf", projectors[2]]
    assert chosen("llama_cpp", "llm", "x-Q4_K_M.gguf", *projectors[:2]) == ["x-Q4_K_M.gguf", projectors[1]]
    assert chosen("llama_cpp", "llm", "x-Q4_K_M.gguf", "mmproj.gguf") == ["x-Q4_K_M.gguf", "mmproj.gguf"]


def test_of_a_pipeline_one_variant_and_no_single_file_copies() -> None:
    names = [
        "model_index.json", "sd.safetensors", "sd.ckpt", "unet/config.json", "unet/m.safetensors",
        "unet/m.fp16.safetensors", "unet/m.bin", "vae/config.json", "vae/m.fp16.safetensors", "README.md",
    ]  # fmt: skip
    plain = ["model_index.json", "unet/config.json", "unet/m.safetensors", "vae/config.json", "vae/m.fp16.safetensors"]
    assert chosen("diffusers_image", "tti", *names) == plain
    half = [
        "model_index.json",
        "unet/config.json",
        "unet/m.fp16.safetensors",
        "vae/config.json",
        "vae/m.fp16.safetensors",
    ]
    assert chosen("diffusers_image", "tti", *names, variant="fp16") == half


def test_whisper_takes_the_ctranslate2_file_and_its_texts() -> None:
    names = ["model.bin", "config.json", "tokenizer.json", "vocabulary.txt", "README.md", "pytorch_model.bin"]
    assert chosen("faster_whisper", "stt", *names) == names[:4]


def test_pickles_alone_are_refused_with_the_reason() -> None:
    with pytest.raises(DownloadError, match="only as pickles"):
        chosen("diffusers_image", "tti", "pytorch_model.bin", "config.json")
    with pytest.raises(DownloadError, match="in no format"):
        chosen("llama_cpp", "llm", "config.json")
