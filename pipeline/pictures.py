"""Detections drawn on an image, for the report."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.number_format import number

_SHORT_SIDE = 480  # smaller images are enlarged to it, so that labels fit
_LONG_SIDE = 960
_TEXT_PER_SIDE = 1 / 30
_LINE_PER_SIDE = 1 / 160
_JPEG_QUALITY = 88
_PALETTE = (
    (230, 85, 13), (49, 130, 189), (49, 163, 84), (117, 107, 177), (222, 45, 38),
    (0, 140, 140), (197, 27, 138), (140, 109, 49), (99, 121, 57), (57, 59, 121),
)  # fmt: skip


def draw_boxes(
    image: npt.NDArray[np.uint8],
    detections: npt.NDArray[np.floating],
    class_names: Sequence[str] = (),
) -> bytes:
    """Draw boxes with class and score; the best detection is drawn last, on top.

    Args:
        image: `[h, w, 3]` uint8 RGB; large images are made smaller, small ones larger.
        detections: `[n, 6]` of x1, y1, x2, y2 in pixels of `image`, score in 0..1, class index.
        class_names: Class `i` is called `class_names[i]`, and "class i" where that is missing.

    Returns:
        A JPEG file.
    """
    height, width = image.shape[:2]
    scale = min(max(1.0, _SHORT_SIDE / min(height, width)), _LONG_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    found = detections[np.isfinite(detections).all(axis=1)]
    for detection in found[np.argsort(found[:, 4], kind="stable")]:
        index = int(detection[5])
        name = class_names[index] if 0 <= index < len(class_names) else f"class {index}"
        label = f"{name} {number(float(detection[4]), 2)}"
        box = [float(edge) * scale for edge in detection[:4]]
        _draw_box(draw, size, box, label, _PALETTE[index % len(_PALETTE)])
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _draw_box(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Sequence[float],
    label: str,
    colour: tuple[int, int, int],
) -> None:
    """Draw one box, cut at the border, with its label above it or, at the top, inside."""
    left, right = (min(max(x, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    top, bottom = (min(max(y, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    if right <= left or bottom <= top:
        return
    draw.rectangle(
        (left, top, right, bottom), outline=colour, width=max(1, round(max(size) * _LINE_PER_SIDE))
    )
    text_size = max(1, round(max(size) * _TEXT_PER_SIDE))
    font = ImageFont.load_default(text_size)
    text_width, text_height = draw.textlength(label, font=font) + 8, text_size + 4
    x = max(0.0, min(left, size[0] - text_width))
    y = top - text_height if top >= text_height else top
    draw.rectangle((x, y, x + text_width, y + text_height), fill=colour)
    draw.text((x + 4, y), label, fill="white", font=font)
