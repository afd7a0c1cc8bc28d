"""What the documents say is so: links lead somewhere, commands run, examples work, pages that exist are linked."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lollms_local import cli
from lollms_local.catalog import Catalog
from lollms_local.client import connect
from lollms_local.runtime import Runtime

TOP = Path(__file__).parents[2]
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("benchmarks/*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(TOP / page), re.S)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    titles = re.findall(r"^#+ +(.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"`", "", title).lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in LINK.findall(re.sub(r"```.*?```", "", text_of(page), flags=re.S)):
            yield page, target


def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading() -> None:
    broken = []
    for page, target in links():
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{page.relative_to(TOP)}: {target}")
    assert not broken


def test_every_page_is_linked_from_the_readme_and_no_link_leaves_the_repository() -> None:
    found = {(page.parent / t.partition("#")[0]).resolve() for page, t in links() if not t.startswith("http")}
    assert all(file.is_relative_to(TOP) for file in found)
    from_readme = {(TOP / t.partition("#")[0]).resolve() for page, t in links() if page == TOP / "README.md"}
    assert not [p.name for p in (TOP / "docs").glob("*.md") if p.resolve() not in from_readme]


def test_files_that_the_documents_name_are_there() -> None:
    missing = []
    for page in PAGES:
        for name in re.findall(
            r"`((?:lollms_local|docs|tests|scripts|benchmarks|bindings)/[\w/.-]+\.\w+)`", text_of(page)
        ):
            if not (TOP / name).is_file():
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_the_picture_of_the_readme_is_small() -> None:
    assert (TOP / "docs" / "demo.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (TOP / "docs" / "demo.png").stat().st_size < 300_000


@pytest.mark.parametrize("page", ["README.md", "docs/downloads.md", "docs/gpu.md", "docs/troubleshooting.md"])
def test_every_command_of_the_documents_exists_with_its_options(page: str) -> None:
    """Each `lollms-local ...` is parsed by the command line itself, up to the point where it would begin to work."""
    import typer.main

    said = re.findall(r"(?:^|`)(lollms-local [a-z][^`\n|]*)", text_of(TOP / page), re.M)
    known = typer.main.get_command(cli.app)
    for line in said:
        words = line.split("#")[0].split()[1:]
        at = known
        while words and hasattr(at, "commands") and words[0] in at.commands:
            at = at.commands[words.pop(0)]
        assert not hasattr(at, "commands") or at is not known, line
        options = {o for parameter in at.params for o in [*parameter.opts, *parameter.secondary_opts]}
        assert {w for w in words if re.match(r"--?[a-z]", w)} <= options | {"--help"}, line


def test_the_commands_of_the_readme_run_in_their_order(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (commands,) = [b for b in blocks("README.md", "bash") if "lollms-local doctor" in b]
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)[1:]
        if words[0] in ("--install-completion", "link") or "download" in words:
            continue  # they change the user's shell or ask the hub; they have tests of their own
        monkeypatch.setattr("sys.stdin", io.StringIO("/exit\n"))
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        shown = capsys.readouterr()
        if caught.value.code:
            assert "Run: lollms-local models download" in shown.err, (line, shown.err)
        else:
            assert shown.out.strip() or words[0] == "chat", line
    assert (tmp_path / "hello.wav").read_bytes()[:4] == b"RIFF"


def test_the_first_example_of_the_readme_hears_what_it_said(runtime: Runtime) -> None:
    found: dict[str, object] = {}
    exec(compile(blocks("README.md", "python")[0], "README.md", "exec"), found)
    heard = found["client"].stt.transcribe_audio(found["speech"])  # type: ignore[attr-defined]
    assert "shallow water" in heard.lower()


def test_the_second_example_of_the_readme_streams_fills_a_form_embeds_and_makes_subtitles(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, object] = {}
    exec(compile(blocks("README.md", "python")[1], "README.md", "exec"), found)
    assert isinstance(found["animal"], dict) and set(found["animal"]) == {"name", "legs"}
    assert isinstance(found["vectors"], list) and len(found["vectors"]) == 2
    assert "-->" in str(found["subtitles"]) and "good morning" in str(found["subtitles"]).lower()
    shown = capsys.readouterr().out
    for model in ("smollm2-135m-instruct", "whisper-tiny.en", "piper-en-us-joe-medium"):
        assert model in shown


def test_the_examples_of_the_embedding_page_run(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    for number, block in enumerate(blocks("docs/embedding.md", "python")):
        exec(compile(block, f"embedding.md {number}", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_users_own_catalogue_in_the_documents_is_valid(tmp_path: Path) -> None:
    (block,) = blocks("docs/downloads.md", "yaml")
    (tmp_path / "models.yaml").write_text(block)
    (spec,) = Catalog.read(tmp_path / "models.yaml")
    assert yaml.safe_load(block)["models"][0]["id"] == spec.id == "my-chat"


def test_connect_takes_every_word_that_the_documents_use() -> None:
    import inspect

    known = set(inspect.signature(connect).parameters)
    for page in PAGES:
        for call in re.findall(r"connect\(([^)\n]*=[^)\n]*)\)", text_of(page)):
            assert set(re.findall(r"(\w+)=", call)) <= known, (page.name, call)
