"""Detection before and after the engine, in NumPy: letterbox, decoding, NMS, boxes back to the image.

The maps decoded here are those of `reptrt.models.yolov6.network` and of the YOLOv6Lite ONNX files: per stride
`[n, classes + 4, h, w]`, scores first, then the distances left, top, right, bottom in cells from the
cell's centre. Boxes are x1 y1 x2 y2 in pixels throughout. An end-to-end engine does all this itself;
`read_nms_outputs` reads its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.outputs.suppression import EVALUATION, MAX_CANDIDATES, Suppression
from reptrt.engines.target import require_module

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

NMS_OUTPUTS = ("num_dets", "boxes", "scores", "classes")


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first once `nms` has run.

    Attributes:
        boxes: `[n, 4]` float32, x1 y1 x2 y2 in pixels.
        scores: `[n]` float32 in [0, 1].
        labels: `[n]` int64, indices into the model's classes.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: IntArray


@dataclass(frozen=True)
class Letterbox:
    """How an image was placed on the network's canvas: canvas = image * scale + pad.

    Attributes:
        scale: Canvas pixels per image pixel.
        pad_x: Canvas columns left of the image.
        pad_y: Canvas rows above the image.
    """

    scale: float
    pad_x: int
    pad_y: int


def letterbox(
    image: NDArray[np.uint8], size: tuple[int, int], fill: int = 114
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale an image to fit the canvas, keep its aspect ratio and centre it.

    Args:
        image: `[h, w, 3]` uint8.
        size: Height and width of the canvas in pixels.
        fill: Grey level of the border, 0..255.

    Returns:
        The canvas `[size[0], size[1], 3]` uint8 and where the image lies on it.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    new_height, new_width = max(round(height * scale), 1), max(round(width * scale), 1)
    if (new_height, new_width) != (height, width):
        pillow = require_module("PIL.Image", "pip install pillow")  # the rest needs NumPy alone
        bilinear = pillow.Resampling.BILINEAR
        image = np.asarray(pillow.fromarray(image).resize((new_width, new_height), bilinear))
    pad_y, pad_x = (size[0] - new_height) // 2, (size[1] - new_width) // 2
    canvas = np.full((size[0], size[1], 3), fill, dtype=np.uint8)
    canvas[pad_y : pad_y + new_height, pad_x : pad_x + new_width] = image
    return canvas, Letterbox(scale, pad_x, pad_y)


def boxes_to_image(
    boxes: FloatArray, placement: Letterbox, image_size: tuple[int, int]
) -> FloatArray:
    """Map boxes `[n, 4]` from the canvas back to the image and clip them to it.

    Args:
        boxes: `[n, 4]` in canvas pixels.
        placement: What `letterbox` returned for the image.
        image_size: Height and width of the original image in pixels.
    """
    height, width = image_size
    offset = np.array([placement.pad_x, placement.pad_y] * 2, dtype=np.float32)
    limit = np.array([width, height] * 2, dtype=np.float32)
    scaled = (boxes - offset) / np.float32(placement.scale)
    clipped: FloatArray = np.clip(scaled, 0, limit).astype(np.float32)
    return clipped


def detect(
    outputs: Sequence[FloatArray], strides: Sequence[int], suppression: Suppression = EVALUATION
) -> list[Detections]:
    """Decode the network's maps and suppress duplicates; one result per image of the batch."""
    decoded = decode(outputs, strides, suppression.score_threshold)
    return [nms(found, suppression.iou_threshold, suppression.max_detections) for found in decoded]


def read_nms_outputs(outputs: Mapping[str, NDArray[np.generic]]) -> list[Detections]:
    """Read the outputs `NMS_OUTPUTS` of an end-to-end model; one result per image."""
    counts, boxes, scores, classes = (np.asarray(outputs[name]) for name in NMS_OUTPUTS)
    return [
        Detections(
            boxes[n, :count].astype(np.float32),
            scores[n, :count].astype(np.float32),
            classes[n, :count].astype(np.int64),
        )
        for n, count in enumerate(counts.reshape(-1).tolist())
    ]


def decode(
    outputs: Sequence[FloatArray], strides: Sequence[int], score_threshold: float
) -> list[Detections]:
    """Turn maps into boxes; a cell gives one box per class whose score exceeds the threshold.

    What is not finite, and a box whose width or height is not above 0, is no detection.

    Args:
        outputs: One map `[n, classes + 4, h, w]` per stride.
        strides: Pixels per cell of each map.
        score_threshold: In [0, 1).

    Returns:
        One `Detections` per image in canvas pixels, by class and then by cell.

    Raises:
        ValueError: If the numbers of maps and strides differ.
    """
    levels = [
        _level_boxes(level[:, -4:], stride) for level, stride in zip(outputs, strides, strict=True)
    ]
    boxes = np.concatenate(levels, axis=1)
    rows = [level.reshape(*level.shape[:2], level.shape[2] * level.shape[3]) for level in outputs]
    scores = np.concatenate(rows, axis=2)[:, :-4]
    return [_candidates(boxes[n], scores[n], score_threshold) for n in range(len(scores))]


def cell_centres(height: int, width: int) -> FloatArray:
    """Return x and y of the cells' centres, in cells: `[h, w, 2]`."""
    y, x = np.mgrid[0:height, 0:width]
    centres: FloatArray = np.stack((x, y), axis=-1).astype(np.float32) + np.float32(0.5)
    return centres


@np.errstate(invalid="ignore", over="ignore")
def _level_boxes(distances: FloatArray, stride: int) -> FloatArray:
    """Decode the distances `[n, 4, h, w]` of one level to boxes `[n, h * w, 4]` in pixels."""
    edges = distances.astype(np.float32).transpose(0, 2, 3, 1)
    centres = cell_centres(*distances.shape[2:])
    corners = np.concatenate((centres - edges[..., :2], centres + edges[..., 2:]), axis=-1)
    cells = distances.shape[2] * distances.shape[3]
    boxes: FloatArray = (corners * np.float32(stride)).reshape(-1, cells, 4)
    return boxes


@np.errstate(invalid="ignore", over="ignore")
def _candidates(boxes: FloatArray, scores: FloatArray, threshold: float) -> Detections:
    """Select from boxes `[a, 4]` and scores `[classes, a]` what can be a detection."""
    sides = boxes[:, 2:] - boxes[:, :2]
    has_area = ((sides > 0) & (sides < np.inf)).all(axis=1)
    labels, cells = np.nonzero((scores > threshold) & (scores < np.inf) & has_area)
    return Detections(boxes[cells], scores[labels, cells].astype(np.float32), labels)


def nms(found: Detections, iou_threshold: float, max_detections: int) -> Detections:
    """Greedy non-maximum suppression within each class, of the best `MAX_CANDIDATES` boxes.

    Args:
        found: Boxes of one image, in any order.
        iou_threshold: A box is dropped when it overlaps a better one of its class by more.
        max_detections: Most boxes to keep, over all classes.

    Returns:
        The kept boxes, best first; equal scores keep their order.
    """
    order = _best(found.scores, MAX_CANDIDATES)
    alive = np.ones(len(order), dtype=bool)
    for label in np.unique(found.labels[order]):
        members = np.flatnonzero(found.labels[order] == label)
        alive[members] = _survivors(found.boxes[order[members]], iou_threshold)
    chosen = order[alive][:max_detections]
    return Detections(found.boxes[chosen], found.scores[chosen], found.labels[chosen])


def _best(scores: FloatArray, count: int) -> IntArray:
    """Return the indices of the `count` highest scores, best first; equal ones keep their order."""
    candidates = np.arange(len(scores))
    if len(scores) > count:
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    order: IntArray = candidates[np.argsort(-scores[candidates], kind="stable")[:count]]
    return order


def _survivors(boxes: FloatArray, iou_threshold: float) -> NDArray[np.bool_]:
    """Say which boxes `[n, 4]` of one class, best first, no better one suppresses."""
    overlaps = iou(boxes[:, None], boxes) > iou_threshold
    alive = np.ones(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if alive[index]:
            alive[index + 1 :] &= ~overlaps[index, index + 1 :]
    return alive


@np.errstate(invalid="ignore", over="ignore")
def iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the intersection over union, in [0, 1], of boxes `[..., 4]` that broadcast together."""
    corner = np.maximum(a[..., :2], b[..., :2])
    overlap = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - corner, 0)
    shared = overlap[..., 0] * overlap[..., 1]
    joint = _area(a) + _area(b) - shared
    ratio: FloatArray = (shared / np.maximum(joint, np.float32(1e-9))).astype(np.float32)
    return ratio


def _area(boxes: FloatArray) -> FloatArray:
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    area: FloatArray = sides[..., 0] * sides[..., 1]
    return area
