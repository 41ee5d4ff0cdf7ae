"""Synthetic detection scenes: textured shapes on textured backgrounds, one seed per scene.

A box is the tight box of the pixels of a shape that can be seen: parts outside the image or behind
another shape do not count. A shape is placed only if at least 60 % of it and of every shape already
there stays visible, so every drawn shape has a label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from reptrt.models.demo.shapes import CLASSES, shape_mask

IMAGE_SIZE = 192
TRAIN = range(0, 1_000_000)
CALIBRATION = range(1_000_000, 1_000_512)
EVALUATION = range(2_000_000, 2_000_500)

MIN_VISIBLE = 0.6
_DIAMETERS = (0.12, 0.50)  # of the image side
_MIN_CONTRAST = 60.0  # grey levels between the mean colours of a shape and of what is behind it


@dataclass(frozen=True)
class Scene:
    """One labelled image.

    Attributes:
        image: `[size, size, 3]` uint8 RGB.
        boxes: `[n, 4]` float32, x1 y1 x2 y2 in pixels; x2 and y2 are exclusive.
        labels: `[n]` int64, indices into `reptrt.models.demo.shapes.CLASSES`.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def generate_scene(seed: int, size: int = IMAGE_SIZE) -> Scene:
    """Draw the scene of `seed`: the same seed and size always give the same scene.

    Args:
        seed: Any non-negative integer; see `TRAIN`, `CALIBRATION`, `EVALUATION`.
        size: Height and width in pixels.
    """
    rng = np.random.default_rng(seed)
    canvas = _texture(rng, size, size)
    owner = np.full((size, size), -1, dtype=np.int16)
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(1, 8))):
        label = int(rng.integers(len(CLASSES)))
        area = _place(rng, canvas, owner, label, areas)
        if area:
            labels.append(label)
            areas.append(area)
    boxes = [_tight_box(owner == index) for index in range(len(labels))]
    return Scene(
        image=_photograph(rng, canvas),
        boxes=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.asarray(labels, dtype=np.int64),
    )


def _place(
    rng: np.random.Generator,
    canvas: NDArray[np.float32],
    owner: NDArray[np.int16],
    label: int,
    areas: list[int],
) -> int:
    """Paint one shape into `canvas` and `owner`; return its whole area, 0 if it did not fit."""
    size = canvas.shape[0]
    diameter = size * float(np.exp(rng.uniform(*np.log(_DIAMETERS))))
    mask = shape_mask(label, diameter, float(rng.uniform(0, 2 * np.pi)))
    side = mask.shape[0]
    fill = _texture(rng, side, side)
    top, left = (int(v) for v in rng.integers(-side // 4, size - 3 * side // 4 + 1, 2))
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, size), min(left + side, size)
    area = int((mask >= 0.5).sum())
    mask = mask[y0 - top : y1 - top, x0 - left : x1 - left]
    fill = fill[y0 - top : y1 - top, x0 - left : x1 - left]
    solid = mask >= 0.5
    patch, owners = canvas[y0:y1, x0:x1], owner[y0:y1, x0:x1]
    if solid.sum() < MIN_VISIBLE * area or _hides_too_much(owner, owners[solid], areas):
        return 0
    fill = _contrasting(fill, patch[solid].mean(axis=0), fill[solid].mean(axis=0))
    patch += (fill - patch) * mask[..., None]
    owners[solid] = len(areas)
    return area


def _hides_too_much(owner: NDArray[np.int16], covered: NDArray[np.int16], areas: list[int]) -> bool:
    """Tell whether hiding the `covered` pixels leaves too little of an earlier shape."""
    if not areas:
        return False
    lost = np.bincount(covered[covered >= 0], minlength=len(areas))
    visible = np.bincount(owner[owner >= 0], minlength=len(areas))
    return bool((visible - lost < MIN_VISIBLE * np.asarray(areas)).any())


def _contrasting(
    fill: NDArray[np.float32], behind: NDArray[np.float32], own: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Shift the colour of `fill` away from the colour behind it where the two are close."""
    difference = own - behind
    distance = float(np.linalg.norm(difference))
    if distance >= _MIN_CONTRAST:
        return fill
    direction = np.where(behind < 128, 1.0, -1.0) / np.sqrt(3.0)
    shift: NDArray[np.float32] = (behind + direction * _MIN_CONTRAST - own).astype(np.float32)
    shifted: NDArray[np.float32] = fill + shift
    return shifted


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return a coloured texture `[height, width, 3]`, values around 0..255."""
    base = rng.uniform(20, 235, 3)
    kind = int(rng.integers(4))
    if kind == 0:
        plain: NDArray[np.float32] = np.tile(base.astype(np.float32), (height, width, 1))
        return plain
    other = base + rng.uniform(-90, 90, 3)
    if kind == 1:
        weight = _gradient(rng, height, width)
    elif kind == 2:
        weight = _cloud(rng, height, width)
    else:
        weight = _stripes(rng, height, width)
    texture: NDArray[np.float32] = (base + weight[..., None] * (other - base)).astype(np.float32)
    return texture


def _gradient(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    along = _along(rng, height, width)
    ramp: NDArray[np.float64] = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    return ramp


def _cloud(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    cells = int(rng.integers(3, 12))
    grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    smooth = grid.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64) / 255.0


def _stripes(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Stripes, or checkers where two sets of stripes cross."""
    period = float(rng.uniform(4, 24))
    stripes: NDArray[np.float64] = (_along(rng, height, width) // period) % 2
    if rng.random() < 0.5:
        stripes = (stripes + (_along(rng, height, width) // period) % 2) % 2
    return stripes


def _along(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return each pixel's coordinate along a random direction, in pixels."""
    angle = rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float64)[:, None]
    x = np.arange(width, dtype=np.float64)[None, :]
    along: NDArray[np.float64] = x * np.cos(angle) + y * np.sin(angle)
    return along


def _photograph(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Add what a camera adds: exposure, blur, then sensor noise."""
    exposed = np.clip(canvas * rng.uniform(0.75, 1.25), 0, 255).astype(np.uint8)
    radius = float(rng.uniform(0, 1.2))
    blurred = Image.fromarray(exposed).filter(ImageFilter.GaussianBlur(radius))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0, 10))
    noisy = np.clip(np.asarray(blurred, dtype=np.float32) + noise, 0, 255)
    photograph: NDArray[np.uint8] = noisy.astype(np.uint8)
    return photograph


def _tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
