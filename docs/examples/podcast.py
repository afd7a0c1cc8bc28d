"""Read a text aloud: `python podcast.py article.txt article.wav`. Long texts are spoken sentence by sentence."""

import sys
from pathlib import Path

from lollms_local.client import connect


def main(text_file: str, sound: str) -> None:
    client = connect(speech=True)
    text = Path(text_file).read_text(encoding="utf-8")
    Path(sound).write_bytes(client.tts.generate_audio(text, speed=1.05))


if __name__ == "__main__":
    main(*sys.argv[1:3])
