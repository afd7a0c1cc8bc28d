"""The demo and its page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from lollms_local.cli.demo import Timeline, run_demo
from lollms_local.cli.demo_page import render_page
from lollms_local.media import decode_audio
from lollms_local.runtime import Runtime


class Links(HTMLParser):
    """Collects what the page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src" and value]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_the_demo_chats_speaks_hears_and_says_how_to_get_the_rest(runtime: Runtime, tmp_path: Path) -> None:
    steps, timeline = run_demo(tmp_path)
    by_name = {step.modality: step for step in steps}
    assert [by_name[m].state for m in ("llm", "tts", "stt")] == ["done"] * 3
    assert len(words(by_name["tts"].text) & words(by_name["stt"].text)) >= 0.7 * len(words(by_name["tts"].text))
    assert decode_audio(tmp_path / "speech.wav").duration_s > 0.5
    for modality in ("tti", "ttm", "ttv"):
        if by_name[modality].state == "missing":
            assert f"lollms-local models download {by_name[modality].model}" in by_name[modality].text
    page = Links()
    page.feed(render_page(steps, timeline, "0"))
    assert page.sources and all((tmp_path / name).is_file() for name in page.sources)
    assert "svg" in page.tags and "script" not in page.tags


def test_the_page_does_not_trust_what_a_model_said() -> None:
    from lollms_local.cli.demo import Step

    page = render_page([Step("llm", text="<script>alert(1)</script>", state="done")], Timeline(), "0")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
