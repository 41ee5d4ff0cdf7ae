"""The eight shape classes of the demo scenes, drawn as anti-aliased masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross", "hexagon", "crescent")
_SUPERSAMPLING = 2

Point = tuple[float, float]


def shape_mask(label: int, diameter: float, angle: float) -> NDArray[np.float32]:
    """Draw one shape.

    Args:
        label: Index into `CLASSES`.
        diameter: Diameter of the shape's circumscribed circle in pixels.
        angle: Rotation in radians.

    Returns:
        Coverage in [0, 1], a square `[side, side]` with the circle's centre in its middle.
    """
    side = math.ceil(diameter) + 2
    scale = _SUPERSAMPLING
    canvas = Image.new("L", (side * scale, side * scale), 0)
    pen = ImageDraw.Draw(canvas)
    centre, radius = side * scale / 2, diameter * scale / 2
    name = CLASSES[label]
    if name in ("disc", "ring", "crescent"):
        _draw_round(pen, name, centre, radius, angle)
    else:
        outline = [
            (
                centre + radius * math.cos(angle + turn) * reach,
                centre + radius * math.sin(angle + turn) * reach,
            )
            for turn, reach in _polygon(name)
        ]
        pen.polygon(outline, fill=255)
    return np.asarray(canvas.reduce(scale), dtype=np.float32) / 255.0


def _draw_round(
    pen: ImageDraw.ImageDraw, name: str, centre: float, radius: float, angle: float
) -> None:
    pen.ellipse(_circle(centre, centre, radius), fill=255)
    if name == "ring":
        pen.ellipse(_circle(centre, centre, radius * 0.55), fill=0)
    if name == "crescent":
        x = centre + 0.55 * radius * math.cos(angle)
        y = centre + 0.55 * radius * math.sin(angle)
        pen.ellipse(_circle(x, y, radius * 0.8), fill=0)


def _circle(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius


def _polygon(name: str) -> Sequence[Point]:
    """Return the corners as (turn in radians, distance from the centre in radii)."""
    if name == "star":
        return [(math.pi * k / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    if name == "cross":
        return _cross()
    corners = {"triangle": 3, "square": 4, "hexagon": 6}[name]
    return [(2 * math.pi * k / corners, 1.0) for k in range(corners)]


def _cross() -> Sequence[Point]:
    half = 0.3  # half the width of an arm
    inner = (math.pi / 4, half * math.sqrt(2))
    tip = math.asin(half)
    arm = [(-tip, 1.0), (tip, 1.0), inner]
    return [(turn + math.pi / 2 * k, reach) for k in range(4) for turn, reach in arm]
