"""TopAccuracy and agreement against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from reptrt.pipeline.validation.classification_metrics import (
    TopAccuracy,
    agreement,
    class_divergence,
    top_class,
)


def test_top1_and_top5_of_known_logits() -> None:
    accuracy = TopAccuracy()
    row = np.arange(10, dtype=np.float32)  # classes 9, 8, 7, 6, 5 are the best five
    accuracy.update(np.stack([row, row]), np.array([9, 5]))
    accuracy.update(row[None], np.array([4]))
    accuracy.update(row[None], np.array([8]))
    assert accuracy.num_images == 4
    assert accuracy.top1 == pytest.approx(25.0)
    assert accuracy.top5 == pytest.approx(75.0)


def test_top5_of_three_classes_is_always_right() -> None:
    accuracy = TopAccuracy()
    accuracy.update(np.array([[3.0, 2.0, 1.0]], np.float32), np.array([2]))
    assert (accuracy.top1, accuracy.top5) == (0.0, 100.0)


def test_of_equal_logits_the_first_class_wins_as_in_argmax() -> None:
    accuracy = TopAccuracy()
    logits = np.zeros((3, 4), np.float32)
    accuracy.update(logits, np.array([0, 1, 3]))
    assert accuracy.top1 == pytest.approx(100 / 3)
    assert top_class(logits).tolist() == [0, 0, 0]


def test_logits_that_are_nan_are_wrong_and_agree_with_nothing() -> None:
    accuracy = TopAccuracy()
    logits = np.full((2, 10), np.nan, np.float32)
    accuracy.update(logits, np.array([0, 9]))
    assert (accuracy.top1, accuracy.top5) == (0.0, 0.0)
    assert agreement(top_class(logits), top_class(logits)) == 0.0


def test_agreement_is_the_share_of_equal_top_classes() -> None:
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 75.0


def test_divergence_of_classes_by_hand() -> None:
    even, sure = np.zeros((1, 2), np.float32), np.log(np.array([[0.75, 0.25]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert class_divergence(even, sure + 7) == pytest.approx([expected])  # logits know no constant
    assert class_divergence(np.exp(sure), np.exp(sure)) == pytest.approx([0.0])
    probabilities = np.array([[0.5, 0.5]], np.float32), np.array([[0.75, 0.25]], np.float32)
    assert class_divergence(*probabilities) == pytest.approx([expected])


def test_divergence_from_nan_is_nan() -> None:
    logits = np.array([[1.0, np.nan], [1.0, 2.0]], np.float32)
    found = class_divergence(np.ones((2, 2), np.float32), logits)
    assert np.isnan(found).tolist() == [True, False]
