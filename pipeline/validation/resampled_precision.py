"""The mAP of many samples of the images at once: what a bootstrap asks for hundreds of times.

Which box matches which annotation is COCO's own answer; only the sums over the images that were drawn
are made here, as weights of the images, with COCO's 101 recalls and its envelope of precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST_NUMBERS = 8_000_000
"""Of one array: samples are taken in parts."""


@dataclass(frozen=True)
class ClassMatches:
    """What was found of one class in all images, the best boxes first.

    Attributes:
        images: index of each box's image [boxes].
        hits: whether a box matches an annotation [IoU thresholds, boxes].
        ignored: whether it matches a crowd, and counts neither way [IoU thresholds, boxes].
        annotated: annotations in each image, without crowds [images].
    """

    images: NDArray[np.int64]
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    annotated: NDArray[np.int64]


def resampled_map(classes: Sequence[ClassMatches], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """MAP over the IoU thresholds, in percent, of each sample.

    Args:
        classes: of the model.
        drawn: images of each sample [samples, images drawn]; one may be drawn many times.

    Returns:
        [samples]; 0 where nothing that was drawn is annotated.
    """
    num_images = len(classes[0].annotated)
    weights = np.stack([np.bincount(one, minlength=num_images) for one in drawn], axis=1)
    total, defined = np.zeros(len(drawn)), np.zeros(len(drawn))
    for one in classes:
        annotated = one.annotated @ weights
        total += np.where(annotated > 0, _average_precision(one, weights, annotated), 0.0)
        defined += annotated > 0
    return 100.0 * total / np.maximum(defined, 1)


def _average_precision(
    one: ClassMatches, weights: NDArray[np.int64], annotated: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean over the IoU thresholds, for weights of the images [images, samples]."""
    step = max(1, _MOST_NUMBERS // max(1, len(one.images)))
    parts = [slice(at, at + step) for at in range(0, weights.shape[1], step)]
    return np.concatenate([_of_part(one, weights[:, part], annotated[part]) for part in parts])


def _of_part(
    one: ClassMatches, weights: NDArray[np.int64], annotated: NDArray[np.int64]
) -> NDArray[np.float64]:
    of_boxes = weights[one.images]
    seen = np.cumsum(of_boxes, axis=0)  # boxes as good or better [boxes, samples]
    total = np.zeros(weights.shape[1])
    for hits, ignored in zip(one.hits, one.ignored, strict=True):
        if not hits.any():
            continue
        found = np.cumsum(of_boxes[hits], axis=0)
        left_out = np.cumsum(of_boxes[ignored], axis=0, dtype=np.int64)
        left_out = np.concatenate([np.zeros_like(left_out, shape=(1, len(total))), left_out])
        counted = seen[hits] - left_out[np.cumsum(ignored)[hits]]
        envelope = np.maximum.accumulate((found / np.maximum(counted, 1))[::-1], axis=0)[::-1]
        reached = np.searchsorted(_RECALLS, found / np.maximum(annotated, 1), side="right")
        newly = np.diff(reached, axis=0, prepend=0)  # recalls whose first box this is
        total += (envelope * newly).sum(axis=0) / len(_RECALLS)
    averaged: NDArray[np.float64] = total / len(one.hits)
    return averaged
