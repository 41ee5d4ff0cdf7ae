"""Accuracy of two models on the same images: hand-computed, with runners that recite their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reptrt.calibrators.progress import no_progress
from reptrt.engines.report_schema import Accuracy, MetricPair
from reptrt.engines.tensor_spec import TensorSpec
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.coco import Annotations
from reptrt.pipeline.data.datasets import ClassificationSet, DetectionSet
from reptrt.pipeline.validation.evaluate import evaluate
from reptrt.pipeline.validation.evaluate_batches import most_changed, pad_batch

SIZE = 32
PLAIN = Preprocess((SIZE, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")


@dataclass
class Reciter:
    """A runner that tells images apart by their grey level: level k gets row k of `answers`."""

    name: str
    answers: np.ndarray[Any, Any]
    output: str = "logits"
    backend: str = "test"
    device: str = "test"
    batches: list[int] = field(default_factory=list)
    input_metadata: dict[str, TensorSpec] = field(default_factory=dict)

    def __enter__(self) -> Reciter:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def infer(self, feed_dict: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        images = feed_dict["images"]
        self.batches.append(len(images))
        levels = np.rint(images[:, 0, 0, 0] * 255).astype(int)
        return {"unused": images, self.output: self.answers[levels]}


def grey_images(folder: Path, count: int) -> tuple[Path, ...]:
    """Image k is all of grey level k."""
    files = tuple(folder / f"{level}.png" for level in range(count))
    for level, file in enumerate(files):
        Image.new("RGB", (SIZE, SIZE), (level,) * 3).save(file)
    return files


def one_hot(*classes: int) -> np.ndarray[Any, Any]:
    return np.eye(7, dtype=np.float32)[list(classes)]


def card(task: Any, outputs: tuple[str, ...], strides: tuple[int, ...] = ()) -> ModelCard:
    return ModelCard("m", task, PLAIN, 7, None, outputs, strides)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_top1_drop_and_agreement_of_a_classifier(tmp_path: Path, batch_size: int | None) -> None:
    files = grey_images(tmp_path, 4)
    images = ClassificationSet(files, np.array([0, 1, 2, 3]), PLAIN)
    fp32 = Reciter("FP32", one_hot(0, 1, 2, 6))  # three right
    int8 = Reciter("INT8", one_hot(0, 5, 2, 5))  # two right, two as FP32
    result = evaluate(
        fp32, int8, card("classification", ("logits",)), images, batch_size, no_progress
    )
    # of equal logits the first classes come first: class 3 is fourth behind 6, 0, 1 and 2
    found = result.accuracy
    assert found.fp32_interval == (30.06, 95.44)  # Wilson's of 3 in 4
    assert found.drop_interval is not None
    assert found.drop_interval[0] < 25 < found.drop_interval[1]
    assert replace(found, fp32_interval=None, drop_interval=None) == Accuracy(
        metric="top1",
        fp32=75.0,
        quantized=50.0,
        drop=25.0,
        agreement=50.0,
        num_images=4,
        extra={"top5": MetricPair(100.0, 100.0)},
        chance=18.75,  # of four classes that FP32 sees, three are labels, once each
        lost=1,
        gained=0,
        divergence=13.8155,  # two of four answers have another class, of probability 1e-12
    )
    assert (result.shown, sorted(result.changed)) == (None, [1, 3])
    assert fp32.batches == int8.batches == ([4] if batch_size is None else [3, 3])


def test_the_images_that_changed_most_come_first_and_nan_before_all() -> None:
    difference = np.array([0.0, 0.2, np.nan, 0.0, 0.9, 0.2, 0.3, 0.1, 0.15])
    assert most_changed(difference) == (2, 4, 6, 1, 5, 8)
    assert most_changed(np.zeros(3)) == ()


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    images = ClassificationSet(grey_images(tmp_path, 5), np.zeros(5, dtype=np.int64), PLAIN)
    runner = Reciter("FP32", one_hot(0, 0, 0, 0, 0))
    seen: list[tuple[str, int, int]] = []
    evaluate(
        runner, runner, card("classification", ("logits",)), images, 2,
        lambda *step: seen.append(step),
    )  # fmt: skip
    assert seen == [("evaluate FP32 and INT8", done, 3) for done in (1, 2, 3)]


def one_box(score: float, left: float = 1.0) -> np.ndarray[Any, Any]:
    """A map of 4 x 4 cells of 8 pixels; cell (1, 1) shows class 2 in a box that ends at 20, 20."""
    cells = np.zeros((7 + 4, 4, 4), dtype=np.float32)
    cells[2, 1, 1] = score
    cells[7:, 1, 1] = (left, 1.0, 1.0, 1.0)
    return cells


def objects(*boxes: tuple[float, float, float, float]) -> Annotations:
    table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = (table[:, 2:] - table[:, :2]).prod(axis=1)
    labels = np.full(len(table), 2)
    return Annotations(table, labels, areas, np.zeros(len(table), dtype=bool))


def detection_set(folder: Path, *annotations: Annotations) -> DetectionSet:
    files = grey_images(folder, len(annotations))
    return DetectionSet(files, annotations, (None,) * len(files), tuple("abcdefg"), PLAIN)


def test_map_drop_and_agreement_of_a_detector(tmp_path: Path) -> None:
    images = detection_set(tmp_path, objects((4, 4, 20, 20)), objects())
    fp32 = Reciter("FP32", np.stack([one_box(0.9), one_box(0.0)]), output="p3")
    # left edge at 12 - 8 * 0.4375 = 8.5: IoU 11.5 / 16 = 0.72 passes five of ten thresholds
    int8 = Reciter("INT8", np.stack([one_box(0.8, left=0.4375), one_box(0.0)]), output="p3")
    result = evaluate(fp32, int8, card("detection", ("p3",), (8,)), images, None, no_progress)
    assert result.accuracy == Accuracy(
        metric="map_50_95",
        fp32=100.0,
        quantized=50.0,
        drop=50.0,
        agreement=100.0,
        num_images=2,
        extra={"map_50": MetricPair(100.0, 100.0)},
        chance=0.0,  # no box lies where the other image has one
    )
    assert result.shown == ((2, 0), (0, 0))


def test_a_detector_that_collapsed_and_finds_nothing_scores_zero(tmp_path: Path) -> None:
    images = detection_set(tmp_path, objects((4, 4, 20, 20)))
    fp32 = Reciter("FP32", one_box(0.9)[None], output="p3")
    int8 = Reciter("INT8", one_box(0.0)[None], output="p3")
    result = evaluate(fp32, int8, card("detection", ("p3",), (8,)), images, 2, no_progress)
    found = result.accuracy
    assert (found.fp32, found.quantized, found.agreement) == (100.0, 0.0, 0.0)
    assert int8.batches == [2]


@pytest.mark.parametrize(("batch_size", "expected"), [(None, 2), (2, 2), (5, 5)])
def test_a_batch_is_filled_up_with_zeros(batch_size: int | None, expected: int) -> None:
    images = np.ones((2, 3, 4, 4), dtype=np.float32)
    padded = pad_batch(images, batch_size)
    assert padded.shape == (expected, 3, 4, 4)
    assert padded.dtype == np.float32
    np.testing.assert_array_equal(padded[:2], images)
    assert not padded[2:].any()
