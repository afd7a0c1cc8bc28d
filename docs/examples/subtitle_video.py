"""Subtitles for a video or a recording: `python subtitle_video.py talk.mp4` writes talk.srt beside it."""

import sys
from pathlib import Path

from lollms_local.client import connect


def main(video: str) -> Path:
    client = connect(transcription=True)
    target = Path(video).with_suffix(".srt")
    target.write_text(client.stt.transcribe_audio(video, output="srt"), encoding="utf-8")
    print(target)
    return target


if __name__ == "__main__":
    main(sys.argv[1])
