"""Mean average precision and agreement of boxes against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.outputs.detection import Detections, Letterbox
from reptrt.pipeline.data.batches import Batch
from reptrt.pipeline.data.coco import Annotations
from reptrt.pipeline.validation.detection_metrics import CocoAccuracy, detect_in_images


def objects(*rows: tuple[float, float, float, float, int], crowd: bool = False) -> Annotations:
    """Rows of x1 y1 x2 y2 label."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    sides = table[:, 2:4] - table[:, :2]
    return Annotations(
        table[:, :4], table[:, 4].astype(np.int64), sides.prod(axis=1), np.full(len(table), crowd)
    )


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Rows of x1 y1 x2 y2 score label."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def coco_map(annotations: list[Annotations], *detections: Detections) -> tuple[float, float]:
    accuracy = CocoAccuracy(annotations, num_classes=2)
    accuracy.update(range(len(detections)), detections)
    result = accuracy.compute()
    return result.map_50_95, result.map_50


def test_perfect_detections_score_one_hundred(capsys: pytest.CaptureFixture[str]) -> None:
    truth = [objects((0, 0, 10, 10, 0), (20, 20, 40, 50, 1)), objects((5, 5, 25, 25, 1))]
    first = found((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 50, 0.8, 1))
    assert coco_map(truth, first, found((5, 5, 25, 25, 0.7, 1))) == pytest.approx((100, 100))
    assert capsys.readouterr().out == ""


def test_a_box_of_iou_072_passes_five_of_the_ten_thresholds() -> None:
    truth = [objects((0, 0, 100, 100, 0))]
    shifted = found((0, 0, 72, 100, 0.9, 0))  # 0.50, 0.55, 0.60, 0.65, 0.70
    assert coco_map(truth, shifted) == pytest.approx((50, 100))


def test_a_wrong_class_counts_twice_and_classes_without_annotations_not_at_all() -> None:
    truth = [objects((0, 0, 10, 10, 0))]
    assert coco_map(truth, found((0, 0, 10, 10, 0.9, 1))) == (0.0, 0.0)
    both = found((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 10, 0.5, 0))
    assert coco_map(truth, both) == pytest.approx((100, 100))


def test_a_better_scored_false_alarm_halves_the_precision() -> None:
    truth = [objects((0, 0, 10, 10, 0)), objects()]
    right, wrong = found((0, 0, 10, 10, 0.5, 0)), found((50, 50, 60, 60, 0.9, 0))
    assert coco_map(truth, right, wrong) == pytest.approx((50, 50))


def test_only_images_that_were_added_are_evaluated() -> None:
    truth = [objects((0, 0, 10, 10, 0)), objects((0, 0, 10, 10, 0))]
    assert coco_map(truth, found((0, 0, 10, 10, 0.5, 0))) == pytest.approx((100, 100))


def test_detections_in_a_crowd_count_neither_way() -> None:
    truth = [objects((0, 0, 10, 10, 0)), objects((0, 0, 50, 50, 0), crowd=True)]
    right, inside = found((0, 0, 10, 10, 0.5, 0)), found((5, 5, 15, 15, 0.9, 0))
    assert coco_map(truth, right, inside) == pytest.approx((100, 100))


def test_nothing_found_and_nothing_annotated_score_zero() -> None:
    assert coco_map([objects((0, 0, 10, 10, 0))], found()) == (0.0, 0.0)
    assert coco_map([objects()], found((0, 0, 10, 10, 0.5, 0))) == (0.0, 0.0)


def test_maps_of_a_letterboxed_batch_become_boxes_in_image_pixels() -> None:
    level = np.zeros((1, 1 + 4, 2, 2), dtype=np.float32)
    level[0, :, 0, 1] = [0.9, 0.5, 0.25, 0.5, 0.5]  # canvas x 8..16, y 2..8
    images = np.zeros((1, 3, 16, 16), np.float32)
    batch = Batch(images, np.array([0]), (Letterbox(2.0, 0, 4),), ((4, 8),))
    (one,) = detect_in_images([level], [8], batch)
    np.testing.assert_allclose(one.boxes, [[4.0, 0.0, 8.0, 2.0]])
    assert (one.scores.tolist(), one.labels.tolist()) == ([pytest.approx(0.9)], [0])


def test_an_image_that_is_drawn_twice_counts_as_two() -> None:
    boxes = np.array([[0.0, 0.0, 10.0, 10.0]])
    truth = Annotations(
        boxes, np.zeros(1, dtype=np.int64), np.array([100.0]), np.zeros(1, dtype=bool)
    )
    hit = Detections(boxes.astype(np.float32), np.array([0.9], np.float32), np.zeros(1, np.int64))
    miss = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    accuracy = CocoAccuracy([truth] * 3, num_classes=2)
    accuracy.update(range(3), [hit, miss, miss])
    matches = accuracy.match()
    expected = accuracy.compute()
    assert matches.mean_average_precision() == expected
    drawn = np.array([[0, 0, 0], [1, 2, 2], [0, 0, 1], [0, 1, 2]])
    three, none, two, one = matches.of_samples(drawn)
    assert three == pytest.approx(100.0)
    assert none == 0.0
    assert two == pytest.approx(100 * 67 / 101)  # recalls 0 .. 0.66
    assert one == pytest.approx(expected.map_50_95)
    assert matches.mean_average_precision() == expected


def random_scenes(count: int, num_classes: int) -> tuple[list[Annotations], list[Detections]]:
    """Annotations, some of them crowds, and boxes near them and elsewhere; more than COCO looks at."""
    random = np.random.default_rng(3)
    truth, found = [], []
    for _ in range(count):
        corner = random.uniform(0, 100, (6, 2))
        boxes = np.concatenate([corner, corner + random.uniform(20, 60, (6, 2))], axis=1)
        labels = random.integers(0, num_classes, 6)
        truth.append(Annotations(boxes, labels, np.full(6, 900.0), random.random(6) < 0.2))
        others = random.uniform(0, 100, (300, 2))
        others = np.concatenate([others, others + 40], axis=1)
        near = np.concatenate([boxes + random.normal(0, scale, boxes.shape) for scale in (1, 3, 8)])
        scores = random.permutation(np.linspace(0.01, 0.99, 318) + random.uniform(0, 1e-3, 318))
        guesses = np.concatenate([np.tile(labels, 3), random.integers(0, 2, 300)])
        all_boxes = np.concatenate([near, others]).astype(np.float32)
        found.append(Detections(all_boxes, scores.astype(np.float32), guesses))
    return truth, found


def test_the_map_of_samples_is_that_of_coco() -> None:
    truth, found = random_scenes(12, num_classes=4)  # the last class is seldom or never found
    accuracy = CocoAccuracy(truth, 5)
    accuracy.update(range(12), found)
    drawn = np.random.default_rng(4).integers(0, 12, (20, 12))
    expected = []
    for sample in drawn:
        one = CocoAccuracy([truth[index] for index in sample], 5)
        one.update(range(12), [found[index] for index in sample])
        expected.append(one.compute().map_50_95)
    assert accuracy.match().of_samples(drawn) == pytest.approx(expected, abs=1e-9)
    assert np.std(expected) > 1
