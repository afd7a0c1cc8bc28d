"""Nothing reaches the network unless the user asks for a download."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]

SCRIPT = """
import socket
opened = []
def refuse(self, address, *rest):
    opened.append(address)
    raise OSError("the test forbids it")
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, a)

from lollms_client import LollmsClient
names = {f"{m}_binding_name": f"local_{m}" for m in ("llm", "tti", "stt", "tts", "ttv", "ttm")}
client = LollmsClient(**names, debug=False)
for modality in ("llm", "tti", "stt", "tts", "ttv", "ttm"):
    binding = getattr(client, modality)
    assert binding.list_models() and isinstance(binding.get_zoo(), list)
    binding.get_settings(), binding.ps()
    assert binding.load_model("some/repository-that-is-nowhere") is False
    binding.model_name = None
sound = client.tts.generate_audio("The quick brown fox jumps over the lazy dog.")
heard = client.stt.transcribe_audio(sound)
said = client.generate_text("Hello", n_predict=8)
assert "brown fox" in heard.lower(), heard
assert said.strip()
assert not opened, opened
print("quiet")
"""


def test_listing_and_generating_open_no_socket(models_dir: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LOLLMS_LOCAL_MODELS_DIR": str(models_dir),
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(TOP), *filter(None, sys.path)]),
    }
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)  # the product keeps quiet by itself
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=110, cwd=tmp_path, env=environment
    )
    assert done.stdout.rstrip().endswith("quiet"), done.stdout[-1500:] + done.stderr[-3000:]
    traces = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "Microsoft" in path.parts]
    assert not traces, "onnxruntime keeps an identifier and a queue of what it would send"
