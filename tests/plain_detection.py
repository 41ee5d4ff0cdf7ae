"""Decoding and NMS as one would explain them, in loops: what the fast ones must equal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reptrt.engines.outputs.suppression import Suppression

Box = Sequence[float]
Found = tuple[list[float], float, int]


def plain_detect(
    maps: Sequence[np.ndarray], strides: Sequence[int], suppression: Suppression
) -> list[Found]:
    """Box, score and class of what is found in one image's maps [classes + 4, h, w], best first."""
    candidates: list[Found] = []
    for label in range(len(maps[0]) - 4):
        for level, stride in zip(maps, strides, strict=True):
            for row in range(level.shape[1]):
                for column in range(level.shape[2]):
                    score = float(level[label, row, column])
                    left, top, right, bottom = (float(x) for x in level[-4:, row, column])
                    box = [
                        (column + 0.5 - left) * stride, (row + 0.5 - top) * stride,
                        (column + 0.5 + right) * stride, (row + 0.5 + bottom) * stride,
                    ]  # fmt: skip
                    is_scored = suppression.score_threshold < score < math.inf
                    if is_scored and _has_area(box):
                        candidates.append((box, score, label))
    boxes, scores, labels = [list(column) for column in zip(*candidates, strict=True)] or ([],) * 3
    kept = plain_nms(boxes, scores, labels, suppression.iou_threshold, suppression.max_detections)
    return [candidates[index] for index in kept]


def plain_nms(
    boxes: Sequence[Box],
    scores: Sequence[float],
    labels: Sequence[int],
    threshold: float,
    limit: int,
) -> list[int]:
    """Indices of the boxes that stay, best first; equal scores keep their order."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if labels[k] == labels[index]]
        if all(plain_iou(boxes[k], boxes[index]) <= threshold for k in rivals):
            kept.append(index)
    return kept[:limit]


def plain_iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where either box has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def _has_area(box: Box) -> bool:
    """In float32, as the network's numbers are."""
    with np.errstate(all="ignore"):
        x1, y1, x2, y2 = np.array(box, np.float32)
        return bool(0 < x2 - x1 < np.inf and 0 < y2 - y1 < np.inf)
