"""A story with a picture for each part: `python illustrated_story.py "a lighthouse" story/ [image model]`."""

import sys
from pathlib import Path

from lollms_local.client import connect


def main(subject: str, folder: str, image_model: str = "sd-turbo", parts: int = 2, size: int = 512) -> Path:
    client = connect(chat=True, images=image_model)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    page = [f"<!doctype html><meta charset=utf-8><title>{subject}</title>"]
    for number in range(1, parts + 1):
        text = client.generate_text(f"Write part {number} of a short story about {subject}.", n_predict=80, seed=number)
        (out / f"{number}.png").write_bytes(client.tti.generate_image(text, width=size, height=size, seed=number))
        page.append(f'<img src="{number}.png"><p>{text}</p>')
    (out / "index.html").write_text("\n".join(page), encoding="utf-8")
    return out / "index.html"


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
