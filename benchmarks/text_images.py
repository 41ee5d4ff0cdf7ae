"""Pictures with lines of text drawn on them, for networks that find or read text: docs/field.md.

    python benchmarks/text_images.py images text_images

Random letters in random sizes and colours, the same for the same pictures.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = np.array(list(string.ascii_letters + string.digits + "   "))
SIDE, LINES = 320, 6


def main() -> None:
    """Draw on every picture of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--count", type=int, default=16)
    options = parser.parse_args()
    options.destination.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in options.source.iterdir() if path.suffix != ".csv")
    for seed, path in enumerate(paths[: options.count]):
        picture = Image.open(path).convert("RGB").resize((SIDE, SIDE))
        draw_text(picture, np.random.default_rng(seed)).save(options.destination / f"{seed:03}.png")


def draw_text(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Write some lines on `picture`, in place."""
    pen = ImageDraw.Draw(picture)
    for line in range(LINES):
        text = "".join(generator.choice(LETTERS, int(generator.integers(6, 20))))
        font = ImageFont.load_default(size=int(generator.integers(14, 34)))
        place = (int(generator.integers(0, SIDE // 3)), line * SIDE // LINES + 4)
        paper, ink = (255, 255, 255), tuple(int(v) for v in generator.integers(0, 90, 3))
        if generator.random() < 0.5:
            pen.rectangle(pen.textbbox(place, text, font=font), fill=paper)
        pen.text(place, text, fill=ink, font=font)
    return picture


if __name__ == "__main__":
    main()
