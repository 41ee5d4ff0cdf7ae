"""Without labels: what accuracy can have lost, by hand and against all labels that there could be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reptrt.engines.likeness_record import Likeness
from reptrt.engines.report_schema import Accuracy, OutputNumerics, Validation, Verdict
from reptrt.models.card import ModelCard
from reptrt.pipeline.data.batches import FEWEST_LEFT, MOST_LEFT, Draw
from reptrt.pipeline.data.feeds import NamedFeeds
from reptrt.pipeline.validation.likeness import (
    HeldOut,
    can_be_proved,
    compare_boxes,
    compare_classes,
    compare_masks,
    expected_drop,
)
from reptrt.pipeline.validation.segmentation_metrics import MaskAccuracy
from reptrt.pipeline.validation.verdict import Bounds, judge
from tests.pipeline.validation.test_evaluate import PLAIN


class Count(NamedFeeds):
    """So many samples, and nothing else."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


def logits(classes: list[int]) -> dict[str, Any]:
    return {"logits": np.eye(3, dtype=np.float32)[classes]}


def maps(classes: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"logits": np.eye(3, dtype=np.float32)[classes].transpose(0, 3, 1, 2)}


CLASSIFIER = ModelCard("m", "classification", PLAIN, 3, None, ("logits",))
MASKS = replace(CLASSIFIER, task="segmentation", preprocess=replace(PLAIN, image_size=(4, 4)))


def test_every_image_whose_class_changes_can_be_a_point_lost() -> None:
    both = [(logits([0, 1]), logits([0, 1])), (logits([1, 0]), logits([2, 0]))]
    found = compare_classes(both, CLASSIFIER, HeldOut(Count(4), 1))
    assert (found.agreement, found.most_drop, found.num_images) == (75.0, 25.0, 4)
    assert found.interval is not None
    assert found.interval[1] == pytest.approx(69.94, abs=0.01)
    assert (found.bound, found.is_telling, found.num_calibrated) == ("proof", True, 1)
    same = compare_classes([(logits([2, 2]), logits([2, 2]))], CLASSIFIER, HeldOut(Count(2), 0))
    assert (same.most_drop, same.is_telling) == (0.0, False)


def test_masks_can_lose_what_their_iou_with_those_of_fp32_lacks() -> None:
    fp32 = np.array([[[0, 0, 1, 1]] * 4])
    int8 = np.array([[[0, 1, 1, 1]] * 4])  # IoU 4 / 8 of class 0, 8 / 12 of class 1
    found = compare_masks([(maps(fp32), maps(int8))], MASKS, HeldOut(Count(1), 0))
    assert found.most_drop == pytest.approx(100 - (50 + 200 / 3) / 2, abs=0.01)
    assert (found.agreement, found.interval) == (75.0, None)


@pytest.mark.parametrize("seed", range(20))
def test_no_labels_show_a_larger_loss(seed: int) -> None:
    random = np.random.default_rng(seed)
    fp32, labels = random.integers(0, 3, (2, 5, 4, 4))
    labels = np.where(random.random(labels.shape) < 0.7, fp32, labels)
    int8 = np.where(random.random(fp32.shape) < 0.8, fp32, random.integers(0, 3, fp32.shape))
    found = compare_masks([(maps(fp32), maps(int8))], MASKS, HeldOut(Count(5), 0))
    before, after = MaskAccuracy(5), MaskAccuracy(5)
    for index in range(5):
        before.update(index, fp32[index].astype(np.uint8), labels[index].astype(np.uint8))
        after.update(index, int8[index].astype(np.uint8), labels[index].astype(np.uint8))
    assert before.mean_iou() - after.mean_iou() <= found.most_drop + 0.01
    row = [one[:, 0, 0].tolist() for one in (fp32, int8, labels)]
    drop = 20 * sum(int(a == c) - int(b == c) for a, b, c in zip(*row, strict=True))
    classes = [(logits(row[0]), logits(row[1]))]
    assert drop <= compare_classes(classes, CLASSIFIER, HeldOut(Count(5), 0)).most_drop


def test_the_drop_of_a_detector_is_estimated_from_its_noise() -> None:
    assert expected_drop({"a": OutputNumerics(20.0, 1.0)}) == pytest.approx(0.4)
    halved = {"a": OutputNumerics(20.0, 1.0), "b": OutputNumerics(None, 1.0)}
    assert expected_drop(halved) == pytest.approx(0.2)
    assert expected_drop({"a": OutputNumerics(None, None)}) == 100
    assert expected_drop({}) == 100


def test_a_detector_that_shows_no_box_tells_nothing() -> None:
    empty = {"logits": np.zeros((2, 5, 2, 2), dtype=np.float32)}
    detector = replace(CLASSIFIER, task="detection", strides=(8,))
    found = compare_boxes([(empty, empty)], detector, HeldOut(Count(2), 0), 0.5)
    assert (found.agreement, found.most_drop, found.bound) == (100.0, 0.5, "estimate")
    assert not found.is_telling


ALIKE = Likeness("top1", 98.0, 600, 0, 2.0, (1.1, 3.48))


def verdict(found: Likeness, **bounds: Any) -> Verdict:
    numerics = {"logits": OutputNumerics(20.0, 0.99)}
    return judge(Validation(likeness=found, numerics=numerics), Bounds(**bounds))


@pytest.mark.parametrize(
    ("found", "limit", "decision", "reason"),
    [
        (ALIKE, 4.0, "passed", "INT8 changes the class of 2.00 % of 600 images, and can lose as many points"),
        (ALIKE, 3.0, "failed", "which may be up to 3.48, and the limit is 3.00: about 1125 images would decide"),
        (ALIKE, 1.0, "failed", "points, and the limit is 1.00"),
        (replace(ALIKE, num_calibrated=600), 4.0, "passed", "600 images (all of which calibrated too)"),
        (replace(ALIKE, is_telling=False), 4.0, "failed", "FP32 answers all 600 images alike"),
        (replace(ALIKE, metric="miou"), 4.0, "passed", "INT8 has 98.00 % mIoU with FP32's masks"),
        (Likeness("map_50_95", 91.0, 40, 0, 0.4, bound="estimate"), 0.5, "passed", "about 0.40 points of mAP"),
        (Likeness("map_50_95", 91.0, 40, 0, 0.6, bound="estimate"), 0.5, "failed", "the limit is 0.50"),
        (Likeness("map_50_95", 80.0, 40, 0, 0.4, bound="estimate"), 0.5, "failed", "at least 85.00"),
    ],
)  # fmt: skip
def test_the_verdict_says_that_no_label_was_seen(
    found: Likeness, limit: float, decision: str, reason: str
) -> None:
    judged = verdict(found, max_drop=limit)
    assert judged.decision == decision
    assert reason in judged.reason
    assert any("no label" in check.reason for check in judged.checks)
    assert decision == "failed" or "no label was seen" in judged.reason


def test_agreement_alone_is_judged_without_labels() -> None:
    passed = verdict(ALIKE, min_agreement=97.0)
    assert passed.reason == "INT8 agrees with FP32 to 98.00 % on 600 images without labels"
    assert verdict(ALIKE, min_agreement=99.0).decision == "failed"


def test_few_images_prove_nothing_however_alike_both_answer() -> None:
    assert not can_be_proved(replace(ALIKE, num_images=380), 1.0)
    assert can_be_proved(replace(ALIKE, num_images=381), 1.0)
    assert not can_be_proved(Likeness("map_50_95", 91.0, 40, 0, 0.4, bound="estimate"), 1.0)
    assert not can_be_proved(None, 1.0)
    assert can_be_proved(Accuracy("top1", num_images=381), 1.0)
    assert not can_be_proved(Accuracy("top1", num_images=380), 1.0)
    assert not can_be_proved(Accuracy("map_50_95", num_images=5000, drop_interval=(0.0, 0.1)), 1.0)


def test_what_calibration_leaves_is_drawn() -> None:
    drawn, left = Draw(100, 3).choose(160), Draw(100, 3, is_rest=True).choose(160)
    assert sorted([*drawn, *left]) == list(range(160))
    assert len(Draw(160 - FEWEST_LEFT + 1, 3, is_rest=True).choose(160)) == 160
    assert len(Draw(None, 3, is_rest=True).choose(20)) == 20
    assert len(Draw(10, 3, is_rest=True).choose(5000)) == MOST_LEFT
