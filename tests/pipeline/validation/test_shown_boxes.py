"""What is put side by side: scores, partners, and boxes without one."""

from __future__ import annotations

import numpy as np

from reptrt.engines.outputs.detection import Detections
from reptrt.pipeline.validation.shown_boxes import count_boxes, shown_boxes

Row = tuple[float, float, float, float, float, int]


def found(*rows: Row) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_a_partner_below_the_score_is_shown_and_nothing_is_unmatched() -> None:
    fp32, int8 = shown_boxes(found((0, 0, 10, 10, 0.41, 0)), found((0, 0, 10, 9, 0.39, 0)))
    assert (len(fp32.boxes.scores), len(int8.boxes.scores)) == (1, 1)
    assert not fp32.is_unmatched.any()
    assert not int8.is_unmatched.any()


def test_a_box_of_another_class_or_place_is_unmatched_in_both() -> None:
    before = found((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.8, 1), (80, 80, 90, 90, 0.7, 2))
    after = found((0, 0, 10, 10, 0.9, 1), (50, 50, 60, 60, 0.8, 1))
    fp32, int8 = shown_boxes(before, after)
    assert fp32.is_unmatched.tolist() == [True, False, True]
    assert int8.is_unmatched.tolist() == [True, False]
    assert fp32.boxes.labels.tolist() == [0, 1, 2]
    assert count_boxes(before, after) == (5, 3)


def test_low_scores_without_a_high_partner_are_not_shown() -> None:
    low = found((0, 0, 10, 10, 0.39, 0))
    assert count_boxes(low, low) == (0, 0)
    assert count_boxes(low, found()) == (0, 0)
    assert count_boxes(found(), found((0, 0, 10, 10, 0.4, 0))) == (1, 1)
