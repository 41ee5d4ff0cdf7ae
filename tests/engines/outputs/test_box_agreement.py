"""How far two models find the same boxes, against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.outputs.box_agreement import detection_agreement
from reptrt.engines.outputs.detection import Detections


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Rows of x1 y1 x2 y2 score label."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_detections_agree_with_themselves_and_two_empty_images_agree() -> None:
    some = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1), (2, 0, 12, 10, 0.3, 0))
    assert detection_agreement([some, found()], [some, found()]) == pytest.approx(100)


def test_agreement_is_the_mean_f1_over_the_images() -> None:
    wanted = found((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.8, 0), (40, 0, 50, 10, 0.7, 1))
    # one match (IoU 0.8), one of another class, one too far off: 2 * 1 / (3 + 3)
    tested = found((0, 0, 10, 8, 0.9, 0), (40, 0, 50, 10, 0.8, 0), (26, 0, 36, 10, 0.5, 0))
    assert detection_agreement([wanted], [tested]) == pytest.approx(100 / 3)
    assert detection_agreement([wanted, found()], [tested, wanted]) == pytest.approx(100 / 6)


def test_each_reference_box_is_matched_once() -> None:
    wanted = found((0, 0, 10, 10, 0.9, 0))
    double = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.8, 0))
    assert detection_agreement([wanted], [double]) == pytest.approx(200 / 3)


def test_boxes_below_the_score_of_a_shown_box_do_not_count() -> None:
    wanted = found((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.24, 0))
    tested = found((0, 0, 10, 10, 0.25, 0))
    assert detection_agreement([wanted], [tested]) == pytest.approx(100)


def test_sets_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        detection_agreement([found()], [])
