"""A question in a sound file, an answer in a sound file: `python voice_assistant.py question.wav answer.wav`."""

import sys
from pathlib import Path

from lollms_local.client import connect


def main(question: str, answer: str) -> str:
    client = connect(chat=True, transcription=True, speech=True)
    heard = client.stt.transcribe_audio(question)
    said = client.generate_text(heard, system_prompt="Answer in one short sentence.", n_predict=60)
    Path(answer).write_bytes(client.tts.generate_audio(said))
    print(f"heard: {heard}\nsaid:  {said}")
    return heard


if __name__ == "__main__":
    main(*sys.argv[1:3])
