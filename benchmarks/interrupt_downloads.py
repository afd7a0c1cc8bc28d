"""Interrupt downloads at random: kill -9 of the process and cut transfers, over and over, and look at what is left.

    python benchmarks/interrupt_downloads.py --rounds 200

A server on the loopback speaks the hub's protocol; the real client downloads from it in a process of its own. After
every interruption the model must not look installed unless it is whole; in the end one undisturbed run completes it and
every digest must be the published one.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lollms_local import weights  # noqa: E402
from lollms_local.catalog import ModelSpec  # noqa: E402
from tests.unit.hub_server import FakeHub, serve  # noqa: E402

SPEC = ModelSpec(id="net", modality="tts", engine="bark", source="hf:some/net")
CODE = """
import sys
from pathlib import Path
import huggingface_hub.hf_api, huggingface_hub.file_download
from lollms_local import hub_source, weights
from lollms_local.catalog import ModelSpec
spec = ModelSpec(id="net", modality="tts", engine="bark", source="hf:some/net")
print("ready", flush=True)
weights.fetch(spec, Path(sys.argv[1]))
"""


def main() -> int:
    """Run the rounds and print what was seen; 1 if a half model ever looked installed or a digest differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    files = {
        "config.json": b'{"model_type": "bark"}',
        "model-00001-of-00002.safetensors": chance.randbytes(24_000_000),
        "model-00002-of-00002.safetensors": chance.randbytes(9_000_000),
    }
    kills = cuts = finished = wrong = completed = 0
    with serve(FakeHub(files)) as hub, tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        for _ in range(options.rounds):
            hub.cuts = [chance.randrange(24_000_000) for _ in range(chance.randrange(3))]
            cuts += len(hub.cuts)
            killed = _fetch(hub, models, chance.uniform(0.0, 0.8))
            kills, finished = kills + killed, finished + (not killed)
            wrong += _looks_installed_but_is_not(models, files)
            if weights.is_downloaded(SPEC, models):
                weights.remove(SPEC, models)
                completed += 1
        hub.cuts = []
        _fetch(hub, models, None)
        wrong += _looks_installed_but_is_not(models, files) + (not weights.is_downloaded(SPEC, models))
        problems = weights.verify(SPEC, models)
    print(
        f"{options.rounds} rounds: {kills} killed, {finished} ended by themselves, {cuts} cuts asked for, "
        f"{len(hub.ranges)} resumed transfers, {completed} models completed on the way"
    )
    print(f"looked installed and were not: {wrong}; problems of the last one: {problems or 'none'}")
    return 1 if wrong or problems else 0


def _fetch(hub: FakeHub, models: Path, kill_after_s: float | None) -> bool:
    """One download in a process of its own; True if it was killed."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(models)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            if process.poll() is None:
                process.kill()
                return True
    return False


def _looks_installed_but_is_not(models: Path, files: dict[str, bytes]) -> bool:
    folder = models / "net"
    if not weights.is_downloaded(SPEC, models):
        return folder.exists()
    return any((folder / name).read_bytes() != content for name, content in files.items())


if __name__ == "__main__":
    sys.exit(main())
