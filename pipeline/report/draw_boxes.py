"""Detections drawn on an image, for the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from reptrt.pipeline.report.number_format import number

_SHORT_SIDE = 480  # smaller images are enlarged to it, so that labels fit
_LONG_SIDE = 800
_TEXT_PER_WIDTH = 1 / 32
_LINE_PER_WIDTH = 1 / 180
_DASH_PER_WIDTH = 1 / 40
_JPEG_QUALITY = 85
# Okabe and Ito, with grey for black: told apart with every kind of colour vision. Class i always has
# colour i modulo 8.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (187, 187, 187),
)  # fmt: skip
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)

Colour = tuple[int, int, int]
Edges = tuple[float, float, float, float]


@dataclass(frozen=True)
class DrawnBox:
    """One detection.

    Attributes:
        edges: x1, y1, x2, y2 in pixels of the image.
        score: In 0..1.
        label: Class index.
        is_unmatched: The other model has no such box: drawn with dashes, and its label says so.
    """

    edges: Edges
    score: float
    label: int
    is_unmatched: bool = False


def draw_boxes(
    image: npt.NDArray[np.uint8], boxes: Sequence[DrawnBox], class_names: Sequence[str] = ()
) -> bytes:
    """Draw boxes with class and score: good boxes over poor ones, unmatched boxes over matched ones, labels over all.

    Args:
        image: `[h, w, 3]` uint8 RGB; large images are made smaller, small ones larger.
        boxes: What to draw; boxes that are not finite are left out.
        class_names: Class `i` is called `class_names[i]`, and "class i" where that is missing.

    Returns:
        A JPEG file.
    """
    height, width = image.shape[:2]
    scale = min(max(1.0, _SHORT_SIDE / min(height, width)), _LONG_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    placed = [
        (box, edges)
        for box in sorted(boxes, key=lambda box: (box.is_unmatched, box.score))
        if (edges := _on_picture(box.edges, scale, size)) is not None
    ]
    for box, edges in placed:
        _draw_box(draw, edges, PALETTE[box.label % len(PALETTE)], box.is_unmatched)
    taken: list[Edges] = []
    for box, edges in reversed(placed):
        name = class_names[box.label] if 0 <= box.label < len(class_names) else f"class {box.label}"
        text = f"{name} {number(box.score, 2)}" + " only here" * box.is_unmatched
        taken.append(_draw_label(draw, size, edges, text, PALETTE[box.label % len(PALETTE)], taken))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()


def _on_picture(box: Edges, scale: float, size: tuple[int, int]) -> Edges | None:
    """Scale a box and cut it at the border; None where nothing is left of it."""
    if not np.isfinite(box).all():
        return None
    left, right = (min(max(x * scale, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    top, bottom = (min(max(y * scale, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    return (left, top, right, bottom) if right > left and bottom > top else None


def _draw_box(draw: ImageDraw.ImageDraw, edges: Edges, colour: Colour, is_dashed: bool) -> None:
    """Draw an outline that stands out from dark and from light pictures."""
    width = draw.im.size[0]
    line = max(3, round(width * _LINE_PER_WIDTH))
    draw.rectangle(edges, outline=_BLACK)
    left, top, right, bottom = edges
    inner = (left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1))
    draw.rectangle(inner, outline=_WHITE if is_dashed else colour, width=line)
    if not is_dashed:
        return
    dash = max(2.0, width * _DASH_PER_WIDTH)
    for x in np.arange(inner[0], inner[2], dash):
        end = min(x + dash / 2, inner[2])
        draw.rectangle((x, inner[1], end, inner[1] + line - 1), fill=colour)
        draw.rectangle((x, inner[3] - line + 1, end, inner[3]), fill=colour)
    for y in np.arange(inner[1], inner[3], dash):
        end = min(y + dash / 2, inner[3])
        draw.rectangle((inner[0], y, inner[0] + line - 1, end), fill=colour)
        draw.rectangle((inner[2] - line + 1, y, inner[2], end), fill=colour)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    edges: Edges,
    text: str,
    colour: Colour,
    taken: Sequence[Edges],
) -> Edges:
    """Write a label at the first free place at its box, else at the first; return where it is."""
    text_size = max(12, round(size[0] * _TEXT_PER_WIDTH))
    font = ImageFont.load_default(text_size)
    width, height = draw.textlength(text, font=font) + 8, text_size + 5
    left, top, right, bottom = edges
    places = []
    for row in np.arange(top - height, bottom + 1, height):
        y = max(0.0, min(float(row), size[1] - height))
        for column in (left, right - width):
            x = max(0.0, min(column, size[0] - width))
            places.append((x, y, x + width, y + height))
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])
    draw.rectangle(place, fill=colour)
    is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 120
    draw.text((place[0] + 4, place[1] + 1), text, fill=_BLACK if is_light else _WHITE, font=font)
    return place


def _overlap(a: Edges, b: Edges) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
