"""What NMS keeps: thresholds, and how many boxes."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CANDIDATES = 1024
"""Pairs of class and cell of one image that NMS looks at: the best ones.

On 128 images of COCO, YOLOv6Lite-S has as much mAP as with 30 000 to 0.002 points, although half of the
images have more than 2500 pairs above the evaluation's threshold.
"""


@dataclass(frozen=True)
class Suppression:
    """What NMS keeps.

    Attributes:
        score_threshold: scores must exceed it; in [0, 1).
        iou_threshold: a box is dropped when it overlaps a better one of its class by more; in [0, 1].
        max_detections: most boxes of one image, over all classes; 1 to `MAX_CANDIDATES`.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int


EVALUATION = Suppression(score_threshold=0.03, iou_threshold=0.65, max_detections=300)
"""What YOLOv6 evaluates COCO mAP with."""
DEPLOYMENT = Suppression(score_threshold=0.25, iou_threshold=0.65, max_detections=100)
"""For an end-to-end engine: boxes that are shown to somebody."""
