"""Which boxes of FP32 and INT8 the report shows side by side, and which of them only one model finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.outputs.box_agreement import confident, pair_up
from reptrt.engines.outputs.detection import Detections, IntArray

SHOWN_SCORE = 0.4


@dataclass(frozen=True)
class ShownBoxes:
    """The detections of one model that are drawn.

    Attributes:
        boxes: `[n]` detections.
        is_unmatched: `[n]`, whether the other model has no such box.
    """

    boxes: Detections
    is_unmatched: NDArray[np.bool_]


def shown_boxes(fp32: Detections, quantized: Detections) -> tuple[ShownBoxes, ShownBoxes]:
    """Boxes of one image with a score of 0.4 or more, and their partners in the other picture.

    Partners are those of `reptrt.engines.outputs.box_agreement`: a score that falls from 0.41 to 0.39 is no
    difference.
    """
    fp32, quantized = confident(fp32), confident(quantized)
    of_fp32, of_quantized = pair_up(fp32, quantized)
    return _shown(fp32, quantized, of_fp32), _shown(quantized, fp32, of_quantized)


def count_boxes(fp32: Detections, quantized: Detections) -> tuple[int, int]:
    """(boxes shown, unmatched boxes) of an image, over both models."""
    both = shown_boxes(fp32, quantized)
    return sum(len(one.is_unmatched) for one in both), sum(
        int(one.is_unmatched.sum()) for one in both
    )


def _shown(own: Detections, other: Detections, partners: IntArray) -> ShownBoxes:
    of_partner = np.append(other.scores, 0)[partners]  # no partner is -1: the 0 that was appended
    kept = np.maximum(own.scores, of_partner) >= SHOWN_SCORE
    boxes = Detections(own.boxes[kept], own.scores[kept], own.labels[kept])
    return ShownBoxes(boxes, partners[kept] < 0)
