"""`lollms-local demo`: every modality that has a model on this machine, once, and a page that shows the results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import weights
from ..devices import select_device
from ..engines import missing_packages
from ..errors import LocalModelError
from ..modalities.base import MODALITIES, Modality
from ..runtime import get_runtime

__all__ = ["Step", "Timeline", "run_demo"]

PROMPT = "Write one friendly sentence about running language models at home."
SCENE = "a grey heron in shallow water at dawn, soft mist"
TUNE = "a calm waltz for piano and strings"
NAMES: dict[Modality, str] = {
    "llm": "Chat",
    "tts": "Speech out",
    "stt": "Speech in",
    "tti": "Picture",
    "ttv": "Video",
    "ttm": "Music",
}
ORDER: tuple[Modality, ...] = ("llm", "tts", "stt", "tti", "ttm", "ttv")
FILES: dict[Modality, str] = {"tts": "speech.wav", "tti": "picture.png", "ttv": "video.mp4", "ttm": "music.wav"}


@dataclass
class Step:
    """What one modality did.

    Attributes:
        state: "done", "failed" or "missing" (no model on this machine, or no library).
        text: what it said or heard, or why there is nothing.
        file: name of the file it wrote, in the demo's folder.
    """

    modality: Modality
    model: str = ""
    device: str = ""
    state: str = "missing"
    text: str = ""
    file: str = ""
    load_s: float = 0.0
    work_s: float = 0.0

    @property
    def name(self) -> str:
        """For people."""
        return NAMES[self.modality]


@dataclass
class Timeline:
    """Resident memory of the process and bytes of loaded models, sampled while the demo runs."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _start: float = field(default_factory=time.monotonic)

    def watch(self) -> None:
        """Sample five times a second until `stop`."""
        import psutil

        process = psutil.Process()
        while not self._stop.wait(0.2):
            models = sum(sum(info.claims.values()) for info in get_runtime().manager.snapshot())
            self.samples.append((time.monotonic() - self._start, process.memory_info().rss, models))

    def mark(self, moment: float, text: str) -> None:
        """Name a moment, in seconds of `time.monotonic`."""
        self.marks.append((moment - self._start, text))

    def stop(self) -> None:
        """End the watching thread."""
        self._stop.set()


def run_demo(folder: Path, tell: Callable[[Step], None] = lambda step: None) -> tuple[list[Step], Timeline]:
    """Run every modality through the real LoLLMS client and write the results to `folder`.

    Args:
        folder: made if absent; files of an earlier demo are replaced.
        tell: told each step when it is finished.

    Returns:
        The steps, in order, and the memory timeline. A step that fails does not stop the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    client = _client()
    timeline = Timeline()
    watcher = threading.Thread(target=timeline.watch, name="demo-memory", daemon=True)
    watcher.start()
    steps: list[Step] = []
    try:
        for modality in ORDER:
            begin = time.monotonic()
            steps.append(_run_step(client, modality, folder, said=steps[0].text if steps else ""))
            if steps[-1].state != "missing":
                timeline.mark(begin, NAMES[modality])
            tell(steps[-1])
    finally:
        timeline.stop()
        watcher.join(5)
    return steps, timeline


def _client() -> Any:
    """A client of the host with our six bindings."""
    from ..client import connect

    return connect(**{f"{m}_binding_name": f"local_{m}" for m in MODALITIES}, debug=False)


def _run_step(client: Any, modality: Modality, folder: Path, said: str) -> Step:
    step = Step(modality)
    try:
        binding = getattr(client, modality)
        spec = binding.spec()
        step.model = spec.id
        missing = missing_packages(spec.engine)
        here = weights.is_downloaded(spec, get_runtime().models_dir)
        if missing or not here:
            step.text = _how_to_get(modality, spec.id, missing, here)
            return step
        step.device = select_device(binding.job().options.device).torch_name
        begin = time.monotonic()
        if not binding.load_model():
            step.state, step.text = "failed", str(binding.get_last_error())
            return step
        step.load_s = time.monotonic() - begin
        begin = time.monotonic()
        _work(client, step, folder, said)
        step.work_s = time.monotonic() - begin
        step.state = "done"
    except LocalModelError as exc:
        step.state, step.text = "failed", str(exc)
    return step


def _how_to_get(modality: Modality, model: str, missing: list[str], here: bool) -> str:
    """The commands that would make this modality work."""
    commands = []
    if missing:
        commands.append(f"pip install 'lollms-local[{modality}]'")
    if not here:
        commands.append(f"lollms-local models download {model} --yes")
    return "No model here yet. Run: " + " && ".join(commands)


def _work(client: Any, step: Step, folder: Path, said: str) -> None:
    """Do the step's job; texts go into the step, media into the folder."""
    from ..media import write_file

    if step.modality == "llm":
        step.text = client.generate_text(PROMPT, n_predict=60, temperature=0.0).strip()
        return
    if step.modality == "stt":
        step.text = client.stt.transcribe_audio(folder / FILES["tts"]) if (folder / FILES["tts"]).is_file() else ""
        return
    if step.modality == "tts":
        step.text = said or "Hello. This voice runs on your own computer."
        data = client.tts.generate_audio(step.text)
    elif step.modality == "tti":
        step.text, data = SCENE, client.tti.generate_image(SCENE, width=None, height=None)
    elif step.modality == "ttm":
        step.text, data = TUNE, client.ttm.generate_music(TUNE, duration=5)
    else:
        step.text, data = SCENE, client.ttv.generate_video(SCENE, duration=2)
    step.file = FILES[step.modality]
    write_file(folder / step.file, data)
