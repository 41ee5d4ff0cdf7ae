"""Accuracy of FP32 and INT8 on the same labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from reptrt.calibrators.base import Progress
from reptrt.engines.outputs.box_agreement import detection_agreement
from reptrt.engines.outputs.detection import (
    EVALUATION,
    NMS_OUTPUTS,
    Detections,
    FloatArray,
    Suppression,
    read_nms_outputs,
)
from reptrt.engines.outputs.detection import detect as detect_in_maps
from reptrt.engines.report_schema import Accuracy, MetricPair
from reptrt.engines.runtime.runners import Runner
from reptrt.models.card import ModelCard
from reptrt.models.graph import INPUT_NAME
from reptrt.pipeline.data.datasets import Batch, ClassificationSet, DetectionSet, EvaluationSet
from reptrt.pipeline.data.in_memory import LabelledArrays, MetricFunction, as_predict
from reptrt.pipeline.validation.classification_metrics import TopAccuracy, agreement, top_class
from reptrt.pipeline.validation.detection_metrics import (
    CocoAccuracy,
    MeanAveragePrecision,
    boxes_in_images,
)
from reptrt.pipeline.validation.shown_boxes import count_boxes

Pair = tuple[float, float]
"""A metric of FP32 and of INT8, in percent."""

BATCH = 8
"""Images at once where the batch is dynamic."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of both models on labelled images.

    Attributes:
        accuracy: of both.
        shown: `reptrt.pipeline.validation.shown_boxes.count_boxes` of each image; None for a classifier.
    """

    accuracy: Accuracy
    shown: tuple[tuple[int, int], ...] | None = None


def evaluate(
    fp32: Runner,
    quantized: Runner,
    card: ModelCard,
    evaluation: EvaluationSet,
    batch_size: int | None,
    progress: Progress,
) -> Evaluation:
    """Run both models over `evaluation`.

    `batch_size` is the fixed batch of the models, None where it is dynamic.
    """
    runners = {"fp32": fp32, "quantized": quantized}
    if isinstance(evaluation, MetricFunction):
        return _evaluate_by_function(runners, evaluation, batch_size, progress)
    if isinstance(evaluation, DetectionSet):
        return _evaluate_detector(runners, card, evaluation, batch_size, progress)
    return _evaluate_classifier(runners, card, evaluation, batch_size, progress)


def detect(
    runner: Runner,
    card: ModelCard,
    evaluation: DetectionSet,
    batch_size: int | None,
    progress: Progress,
) -> list[Detections]:
    """Boxes of every image of `evaluation`, in pixels of the image."""
    batches = evaluation.batches(batch_size or BATCH)
    found: list[Detections] = []
    for done, batch in enumerate(batches, start=1):
        found += detect_batch(runner, card, batch, batch_size)
        progress(f"evaluate {runner.name}", done, len(batches))
    return found


def detect_batch(
    runner: Runner, card: ModelCard, batch: Batch, batch_size: int | None
) -> list[Detections]:
    """Boxes of each image of `batch`, in pixels of the image."""
    outputs = infer(runner, batch.images, batch_size)
    return boxes_in_images(detections(outputs, card), batch)


def detections(
    outputs: Mapping[str, np.ndarray[Any, Any]],
    card: ModelCard,
    suppression: Suppression = EVALUATION,
) -> list[Detections]:
    """Boxes in pixels of the canvas: those that NMS in the model returns, else decoded from its maps."""
    if NMS_OUTPUTS[0] in outputs:
        return read_nms_outputs(outputs)
    return detect_in_maps([outputs[name] for name in card.outputs], card.strides, suppression)


def _evaluate_detector(
    runners: dict[str, Runner],
    card: ModelCard,
    evaluation: DetectionSet,
    batch_size: int | None,
    progress: Progress,
) -> Evaluation:
    boxes = [
        detect(runner, card, evaluation, batch_size, progress)
        for runner in (runners["fp32"], runners["quantized"])
    ]
    fp32, quantized = (_mean_average_precision(evaluation, card, found) for found in boxes)
    accuracy = _accuracy(
        "map_50_95",
        (fp32.map_50_95, quantized.map_50_95),
        detection_agreement(*boxes),
        len(evaluation),
        {"map_50": (fp32.map_50, quantized.map_50)},
    )
    return Evaluation(accuracy, tuple(count_boxes(*pair) for pair in zip(*boxes, strict=True)))


def _mean_average_precision(
    evaluation: DetectionSet, card: ModelCard, found: Sequence[Detections]
) -> MeanAveragePrecision:
    accuracy = CocoAccuracy(evaluation.annotations, card.num_classes)
    accuracy.update(range(len(found)), found)
    return accuracy.compute()


def _evaluate_classifier(
    runners: dict[str, Runner],
    card: ModelCard,
    evaluation: ClassificationSet | LabelledArrays,
    batch_size: int | None,
    progress: Progress,
) -> Evaluation:
    accuracy = {key: TopAccuracy() for key in runners}
    chosen: dict[str, list[np.ndarray[Any, Any]]] = {key: [] for key in runners}
    batches = evaluation.batches(batch_size or BATCH)
    for done, batch in enumerate(batches, start=1):
        for key, runner in runners.items():
            logits = infer(runner, batch.images, batch_size)[card.outputs[0]]
            accuracy[key].update(logits, evaluation.labels[batch.indices])
            chosen[key].append(top_class(logits))
        progress("evaluate FP32 and INT8", done, len(batches))
    fp32, quantized = accuracy["fp32"], accuracy["quantized"]
    classes = [np.concatenate(chosen[key]) for key in ("fp32", "quantized")]
    return Evaluation(
        _accuracy(
            "top1",
            (fp32.top1, quantized.top1),
            agreement(*classes),
            len(evaluation),
            {"top5": (fp32.top5, quantized.top5)},
        )
    )


def _evaluate_by_function(
    runners: dict[str, Runner],
    metric: MetricFunction,
    batch_size: int | None,
    progress: Progress,
) -> Evaluation:
    """Accuracy in the unit of the user's own metric."""
    values = []
    for done, runner in enumerate((runners["fp32"], runners["quantized"]), start=1):
        values.append(float(metric.function(as_predict(partial(_infer_any, runner, batch_size)))))
        progress(f"evaluate {metric.name}", done, len(runners))
    fp32, quantized = values
    return Evaluation(
        Accuracy(metric=metric.name, fp32=fp32, quantized=quantized, drop=fp32 - quantized)
    )


def _infer_any(
    runner: Runner, batch_size: int | None, images: FloatArray
) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs for any number of images, in batches that the model takes."""
    step = batch_size or BATCH
    parts = [
        infer(runner, images[start : start + step], batch_size)
        for start in range(0, len(images), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pad_batch(images: FloatArray, batch_size: int | None) -> FloatArray:
    """Fill `images` [n, 3, h, w] up to a fixed `batch_size` with zeros; None leaves them."""
    missing = 0 if batch_size is None else batch_size - len(images)
    return np.concatenate([images, np.zeros_like(images[:1]).repeat(missing, axis=0)])


def infer(runner: Runner, images: FloatArray, batch_size: int | None) -> dict[str, Any]:
    """Outputs for `images` `[n, 3, h, w]`; padded with zeros where the model has a larger, fixed batch."""
    outputs = runner.infer({INPUT_NAME: pad_batch(images, batch_size)})
    return {name: value[: len(images)] for name, value in outputs.items()}


def _accuracy(
    metric: str, main: Pair, agreement: float, num_images: int, extra: Mapping[str, Pair]
) -> Accuracy:
    """All rounded to what is shown; the drop is of that, so that a page adds up."""
    fp32, quantized = (round(value, 2) for value in main)
    return Accuracy(
        metric=metric,
        fp32=fp32,
        quantized=quantized,
        drop=round(fp32 - quantized, 2),
        agreement=round(agreement, 2),
        num_images=num_images,
        extra={
            name: MetricPair(*(round(value, 2) for value in pair)) for name, pair in extra.items()
        },
    )
