"""What every command does alike: JSON, quiet, exit codes, one sentence for what is expected to go wrong, completion."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lollms_local import cli
from lollms_local.runtime import Runtime

TOP = Path(__file__).parents[2]
INTERACTIVE = {"chat", "top"}
WITHOUT_BARS = {"run", "ps", "plan", "doctor", "link", "unlink", "list", "verify", "remove", "path", "voices"}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def all_commands() -> dict[str, Any]:
    return dict(commands(typer.main.get_command(cli.app)))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    code = caught.value.code
    return code if isinstance(code, int) else 0


def test_every_command_that_prints_data_knows_json_and_every_one_that_takes_time_knows_quiet() -> None:
    for name, command in all_commands().items():
        options = {o for parameter in command.params for o in parameter.opts}
        last = name.split()[-1]
        assert "--json" in options or last in INTERACTIVE, name
        assert "--quiet" in options or last in WITHOUT_BARS | INTERACTIVE, name
        assert command.help, name


def test_every_option_of_every_command_is_explained() -> None:
    for name, command in all_commands().items():
        silent = [p.name for p in command.params if p.name != "help" and not getattr(p, "help", "")]
        assert not silent, (name, silent)


@pytest.mark.parametrize(
    "wrong",
    [
        ["run", "hello", "--schema", "nowhere.json"],
        ["run", "hello", "--model", "nosuch"],
        ["transcribe", "nowhere.wav"],
        ["edit", "nowhere.png", "--prompt", "a hat"],
        ["image", ""],
        ["image", "a hat", "--size", "big"],
        ["image", "--from-metadata", "nowhere.png"],
        ["speak", "hello", "-o", "hello.docx"],
        ["speak", "hello", "--voice", "nosuch"],
        ["music", "calm", "-o", "calm.docx"],
        ["video", "a walk", "--image", "nowhere.png"],
        ["plan", "nosuch"],
        ["plan", "smollm2-135m-instruct"],
        ["plan", "smollm2-135m-instruct", "--device", "cuda:9"],
        ["models", "verify", "nosuch"],
        ["models", "remove", "smollm2-135m-instruct", "--yes"],
        ["models", "path", "../../etc"],
    ],
)
def test_what_is_expected_to_go_wrong_is_a_sentence_and_exit_code_1_and_with_json_an_object(
    empty_runtime: Runtime, wrong: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(empty_runtime.models_dir)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert call(*wrong) in (1, 2)
    shown = capsys.readouterr()
    assert shown.err.strip() and "Traceback" not in shown.err and not shown.out.strip()
    if call(*wrong, "--json") == 1:
        said = json.loads(capsys.readouterr().out)
        assert said["status"] == "error" and said["message"]


def environment(home: Path, **more: str) -> dict[str, str]:
    mine = {"HOME": str(home), "PYTHONPATH": str(TOP), "LOLLMS_LOCAL_MODELS_DIR": str(home / "models")}
    return {**os.environ, **mine, **more}


def test_a_setting_that_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    for bad in ({"LOLLMS_LOCAL_RAM_BUDGET_GB": "much"}, {"LOLLMS_LOCAL_EVICTION": "nosuch"}):
        done = python(tmp_path, "models", "list", **bad)
        assert done.returncode == 1 and "Traceback" not in done.stderr and next(iter(bad.values())) in done.stderr
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "models.yaml").write_text("models: [{id: x")
    done = python(tmp_path, "models", "list")
    assert done.returncode == 1 and "models.yaml" in done.stderr and "Traceback" not in done.stderr


def python(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lollms_local", *arguments],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        check=False,
    )


def complete(home: Path, typed: str) -> set[str]:
    """What the shell gets for a line, whose last word is being typed."""
    words = typed.split(" ")
    told = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1), "_LOLLMS_LOCAL_COMPLETE": "complete_bash"}
    return set(python(home, **told).stdout.split())


def test_the_tab_key_knows_commands_models_sets_and_modalities(tmp_path: Path) -> None:
    (tmp_path / "models" / "my-own-model").mkdir(parents=True)
    assert complete(tmp_path, "lollms-local mod") == {"models"}
    assert complete(tmp_path, "lollms-local plan smollm2-135m") == {"smollm2-135m-instruct"}
    assert complete(tmp_path, "lollms-local models download --set gpu-8") == {"gpu-8gb"}
    assert complete(tmp_path, "lollms-local chat --model whi") == set()
    assert "whisper-tiny.en" in complete(tmp_path, "lollms-local transcribe --model whi")
    assert complete(tmp_path, "lollms-local plan my-") == {"my-own-model"}


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -"), ("zsh", "#compdef"), ("fish", "complete --command")]
)
def test_a_completion_script_is_there_for_each_shell(tmp_path: Path, shell: str, mark: str) -> None:
    script = python(tmp_path, _LOLLMS_LOCAL_COMPLETE=f"source_{shell}").stdout
    assert mark in script and "lollms-local" in script and "_LOLLMS_LOCAL_COMPLETE" in script


def test_zsh_and_fish_are_offered_the_titles_too(tmp_path: Path) -> None:
    typed = "lollms-local plan smollm2-135m"
    zsh = python(tmp_path, _TYPER_COMPLETE_ARGS=typed, _LOLLMS_LOCAL_COMPLETE="complete_zsh").stdout
    fish = python(
        tmp_path,
        _TYPER_COMPLETE_ARGS=typed,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _LOLLMS_LOCAL_COMPLETE="complete_fish",
    ).stdout
    for answer in (zsh, fish):
        assert "smollm2-135m-instruct" in answer and "SmolLM2 135M Instruct" in answer


def test_installed_in_a_bash_it_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None or os.name == "nt":
        return
    command = tmp_path / "bin" / "lollms-local"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lollms_local "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    script = """
        lollms-local --install-completion >&2
        source ~/.bashrc
        completer=$(complete -p lollms-local | grep -o -- '-F [^ ]*' | cut -c 4-)
        COMP_WORDS=(lollms-local plan smollm2-1); COMP_CWORD=2
        $completer lollms-local
        printf '%s\\n' "${COMPREPLY[@]}"
        exit 0
    """
    done = subprocess.run(
        [bash, "-c", script], env=environment(tmp_path, PATH=path), capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == {"smollm2-135m-instruct", "smollm2-1.7b-instruct"}, done.stderr


def test_the_catalogue_of_a_broken_user_file_does_not_disturb_completion(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "models.yaml").write_text("models: [{id: x")
    assert complete(tmp_path, "lollms-local plan smollm2-135m") == {"smollm2-135m-instruct"}


def test_the_models_of_the_users_own_catalogue_are_offered(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    mine = "models:\n- {id: mine, modality: llm, engine: llama_cpp, source: 'path:/x', licence: MIT}\n"
    (tmp_path / "models" / "models.yaml").write_text(mine)
    assert complete(tmp_path, "lollms-local chat --model min") == {"mine"}
