"""Detection before and after the engine, in NumPy: letterbox, decoding, NMS, boxes back to the image.

The maps decoded here are those of `models.yolov6` and of the YOLOv6Lite ONNX files: per stride
`[n, classes + 4, h, w]`, scores first, then the distances left, top, right, bottom in cells from the
cell's centre. Boxes are x1 y1 x2 y2 in pixels throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float32]
# A collapsed model can report every class in every cell; the best ones are enough.
_MAX_CANDIDATES = 30_000


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
    labels: NDArray[np.int64]


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
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
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
    outputs: Sequence[FloatArray],
    strides: Sequence[int],
    score_threshold: float = 0.03,
    iou_threshold: float = 0.65,
    max_detections: int = 300,
) -> list[Detections]:
    """Decode the network's maps and suppress duplicates; one result per image of the batch.

    The defaults are the ones YOLOv6 evaluates COCO mAP with.
    """
    decoded = decode(outputs, strides, score_threshold)
    return [nms(found, iou_threshold, max_detections) for found in decoded]


def decode(
    outputs: Sequence[FloatArray], strides: Sequence[int], score_threshold: float
) -> list[Detections]:
    """Turn maps into boxes; a cell gives one box per class whose score exceeds the threshold.

    Args:
        outputs: One map `[n, classes + 4, h, w]` per stride.
        strides: Pixels per cell of each map.
        score_threshold: In [0, 1).

    Returns:
        One unsorted `Detections` per image, in canvas pixels.

    Raises:
        ValueError: If the numbers of maps and strides differ.
    """
    levels = [
        _level_boxes(level[:, -4:], stride) for level, stride in zip(outputs, strides, strict=True)
    ]
    boxes = np.concatenate(levels, axis=1)
    scores = np.concatenate(
        [level[:, :-4].reshape(*level[:, :-4].shape[:2], -1) for level in outputs], axis=2
    )
    return [_above(boxes[n], scores[n], score_threshold) for n in range(len(scores))]


def _level_boxes(distances: FloatArray, stride: int) -> FloatArray:
    """Decode the distances `[n, 4, h, w]` of one level to boxes `[n, h * w, 4]` in pixels."""
    height, width = distances.shape[2:]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    left, top, right, bottom = distances.transpose(1, 0, 2, 3)
    corners = np.stack((x - left, y - top, x + right, y + bottom), axis=-1) * np.float32(stride)
    boxes: FloatArray = corners.reshape(len(distances), -1, 4).astype(np.float32)
    return boxes


def _above(boxes: FloatArray, scores: FloatArray, threshold: float) -> Detections:
    """Select from boxes `[a, 4]` and scores `[classes, a]` what exceeds the threshold."""
    labels, cells = np.nonzero(scores > threshold)
    return Detections(boxes[cells], scores[labels, cells].astype(np.float32), labels)


def nms(found: Detections, iou_threshold: float, max_detections: int) -> Detections:
    """Greedy non-maximum suppression within each class.

    Args:
        found: Boxes of one image, in any order.
        iou_threshold: A box is dropped when it overlaps a better one of its class by more.
        max_detections: Most boxes to keep, over all classes.

    Returns:
        The kept boxes, best first; equal scores keep their order.
    """
    order = np.argsort(-found.scores, kind="stable")[:_MAX_CANDIDATES]
    boxes, labels = found.boxes[order], found.labels[order]
    alive = np.ones(len(order), dtype=bool)
    kept: list[int] = []
    for index in range(len(order)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == max_detections:
            break
        rest = (
            index + 1 + np.flatnonzero(alive[index + 1 :] & (labels[index + 1 :] == labels[index]))
        )
        alive[rest[iou(boxes[index], boxes[rest]) > iou_threshold]] = False
    chosen = order[kept]
    return Detections(found.boxes[chosen], found.scores[chosen], found.labels[chosen])


def iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the intersection over union, in [0, 1], of boxes `[..., 4]` that broadcast together."""
    corner = np.maximum(a[..., :2], b[..., :2])
    overlap = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - corner, 0, None)
    shared = overlap[..., 0] * overlap[..., 1]
    joint = _area(a) + _area(b) - shared
    ratio: FloatArray = (shared / np.maximum(joint, np.float32(1e-9))).astype(np.float32)
    return ratio


def _area(boxes: FloatArray) -> FloatArray:
    sides = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    area: FloatArray = sides[..., 0] * sides[..., 1]
    return area
