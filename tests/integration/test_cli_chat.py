"""`lollms-local chat` and `run`, as typed; Ctrl-C in a real terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lollms_local.cli import app
from lollms_local.runtime import Runtime, Settings, set_runtime
from tests.tiny import gguf
from tests.tiny.projector import IMAGE_POSITIONS, projector

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf.llama(tmp_path_factory.mktemp("models") / "tiny.gguf", endless=True)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grammar that makes the model of noise say something."""
    path = tmp_path_factory.mktemp("grammar") / "words.gbnf"
    path.write_text('root ::= "Grüße, 世界."', encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def runtime(model: Path) -> Iterator[Runtime]:
    fresh = Runtime(Settings(models_dir=str(model.parent)))
    before = set_runtime(fresh)
    yield fresh
    set_runtime(before)
    fresh.manager.close()


def typed(*arguments: str, given: str = "") -> Result:
    command, *others = arguments
    return CliRunner().invoke(app, [command, "-m", "tiny.gguf", "--threads", "1", *others], input=given)


def test_run_answers_a_prompt(words: Path) -> None:
    result = typed("run", "Hello", "--grammar", str(words))
    assert result.exit_code == 0 and result.stdout == "Grüße, 世界.\n"


def test_run_looks_at_pictures(model: Path, tmp_path: Path) -> None:
    eyes = projector(tmp_path / "mmproj.gguf")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    gguf.llama(tmp_path / "eyes.gguf", endless=True)
    common = ("--max-tokens", "5", "--json")
    seen = typed("run", "What is it?", "-i", str(tmp_path / "red.png"), *common, "-m", str(tmp_path / "eyes.gguf"))
    blind = typed("run", "What is it?", *common, "-m", str(tmp_path / "eyes.gguf"))
    counts = [json.loads(result.stdout)["prompt_tokens"] for result in (seen, blind)]
    assert eyes.is_file() and counts[0] == counts[1] + IMAGE_POSITIONS + 1  # and the line break between them
    refused = typed("run", "What is it?", "-i", str(tmp_path / "red.png"))
    assert refused.exit_code == 1 and "cannot see images" in str(refused.exception)
    missing = typed("run", "What is it?", "-i", str(tmp_path / "none.png"), "-m", str(tmp_path / "eyes.gguf"))
    assert missing.exit_code == 1 and "no image at" in str(missing.exception)


def test_run_reads_what_is_piped_in_after_the_prompt(words: Path) -> None:
    common = ("--grammar", str(words), "--json", "--raw")
    both = json.loads(typed("run", "Summarise:", *common, given="a text\n").stdout)
    piped = json.loads(typed("run", *common, given="a text\n").stdout)
    assert both["text"] == piped["text"] == "Grüße, 世界."
    assert both["prompt_tokens"] == piped["prompt_tokens"] + len("Summarise:\n\n")
    assert piped["finish_reason"] == "stop" and piped["model"] == "tiny.gguf" and piped["tokens_per_s"] > 0


def test_run_without_a_prompt_is_wrong_use() -> None:
    result = typed("run")
    assert result.exit_code == 2 and "pipe one in" in result.stderr


def test_run_answers_in_the_form_of_a_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    result = typed("run", "A number", "--schema", str(schema))
    assert isinstance(json.loads(result.stdout)["n"], int)
    schema.write_text("[1]")
    assert typed("run", "A number", "--schema", str(schema)).exit_code == 1


def said(*lines: str) -> tuple[str, str]:
    """Both halves of what two answers print: equal if the answers are."""
    result = typed("chat", "-n", "8", "-t", "0", given="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    half = len(result.stdout) // 2
    return result.stdout[:half], result.stdout[half:]


def test_chat_remembers_its_turns_and_obeys_its_commands() -> None:
    first, again = said("Hello", "/again", "/exit", "never read")
    assert first == again != "\n", "the same question in the same place"
    assert said("Hello", "/clear", "Hello") == (first, first)
    remembered = said("Hello", "Hello")
    assert remembered[0] != remembered[1], "the second has the first before it"
    briefed = said("/system Be brief.", "Hello", "/again")
    assert briefed[0] == briefed[1] != first
    assert "/system TEXT" in typed("chat", given="/nonsense\n").stderr


def test_a_prompt_too_long_is_said_and_the_talk_goes_on() -> None:
    result = typed("chat", "-n", "8", "-t", "0", "-c", "256", given=f"{'x' * 400}\nHello\n")
    assert result.exit_code == 0 and "room for 256" in result.stderr and result.stdout.strip()


def test_ctrl_c_stops_the_answer_and_not_the_program(model: Path) -> None:
    """A child in a terminal of its own: interrupted while it writes without an end, it takes the next line."""
    code = "from lollms_local.cli import main; main(['chat', '-m', 'tiny.gguf', '-t', '0', '--threads', '1'])"
    environment = {**os.environ, "LOLLMS_LOCAL_MODELS_DIR": str(model.parent), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=TOP, env=environment, text=True, errors="replace",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin and child.stdout and child.stderr
    child.stdin.write("Hello\n")
    child.stdin.flush()
    assert child.stdout.read(5), "it writes"
    child.send_signal(signal.SIGINT)
    child.stdin.write("/help\n/exit\n")
    child.stdin.close()
    child.stdin = None
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert "[stopped]" in errors and errors.index("[stopped]") < errors.index("/clear")
