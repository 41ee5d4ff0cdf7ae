"""How far two models find the same boxes in the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reptrt.engines.outputs.detection import Detections, IntArray, iou

AGREEMENT_IOU = 0.5
AGREEMENT_SCORE = 0.25  # YOLO's usual threshold for boxes that are shown to somebody


def detection_agreement(reference: Sequence[Detections], test: Sequence[Detections]) -> float:
    """Mean over the images of the F1 score of `test` against the reference's boxes, in percent."""
    return float(np.mean(image_agreements(reference, test)))


def image_agreements(reference: Sequence[Detections], test: Sequence[Detections]) -> list[float]:
    """F1 score of `test` against the reference's boxes in each image, in percent.

    Boxes with a score of at least 0.25 count. Best first, each test box takes the unmatched
    reference box of its class that it overlaps most, if by an IoU of at least 0.5. An image where
    neither finds anything scores 100.

    Args:
        reference: Detections of the FP32 model, one entry per image.
        test: Detections of the quantized model, of the same images.

    Raises:
        ValueError: The numbers of images differ.
    """
    return [100.0 * _f1(wanted, found) for wanted, found in zip(reference, test, strict=True)]


def pair_up(wanted: Detections, found: Detections) -> tuple[IntArray, IntArray]:
    """Partners in `found` of the boxes of `wanted`, and the reverse: indices, -1 for none.

    As in `image_agreements`; `found` is best first.
    """
    overlap = iou(found.boxes[:, None], wanted.boxes[None])
    overlap[found.labels[:, None] != wanted.labels[None]] = 0.0
    of_wanted = np.full(len(wanted.scores), -1)
    of_found = np.full(len(found.scores), -1)
    for index, row in enumerate(overlap):
        if row.size and row.max() >= AGREEMENT_IOU:
            partner = int(row.argmax())
            overlap[:, partner] = 0.0
            of_wanted[partner], of_found[index] = index, partner
    return of_wanted, of_found


def confident(detections: Detections) -> Detections:
    """Keep boxes with a score of at least `AGREEMENT_SCORE`, best first."""
    order = np.argsort(-detections.scores, kind="stable")
    kept = order[detections.scores[order] >= AGREEMENT_SCORE]
    return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])


def _f1(reference: Detections, test: Detections) -> float:
    wanted, found = confident(reference), confident(test)
    total = len(wanted.scores) + len(found.scores)
    return 2.0 * float((pair_up(wanted, found)[0] >= 0).sum()) / total if total else 1.0
