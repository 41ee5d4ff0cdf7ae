"""Accuracy of FP32 and INT8 on the same labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from reptrt.engines.runtime.runners import Runner
from reptrt.models.card import ModelCard
from reptrt.models.graph import INPUT_NAME
from reptrt.pipeline.data.datasets import Batch, ClassificationSet, DetectionSet, EvaluationSet
from reptrt.pipeline.validation.classification_metrics import Accuracy, agreement, top_class
from reptrt.pipeline.validation.detection_metrics import CocoAccuracy, boxes_in_images
from reptrt.pipeline.validation.shown_boxes import count_boxes

BATCH = 8
"""Images at once where the batch is dynamic."""


def evaluate(
    fp32: Runner,
    quantized: Runner,
    card: ModelCard,
    evaluation: EvaluationSet,
    batch_size: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Run both models over `evaluation`; return the `accuracy` entry of report.json (percent).

    `batch_size` is the fixed batch of the models, None where it is dynamic.
    """
    runners = {"fp32": fp32, "quantized": quantized}
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
) -> dict[str, Any]:
    found = {
        key: detect(runner, card, evaluation, batch_size, progress)
        for key, runner in runners.items()
    }
    scores = {key: _mean_average_precision(evaluation, card, found[key]) for key in runners}
    return {
        **_summary("map_50_95", {key: score[0] for key, score in scores.items()}),
        "agreement": round(detection_agreement(found["fp32"], found["quantized"]), 2),
        "shown": [
            count_boxes(*pair) for pair in zip(found["fp32"], found["quantized"], strict=True)
        ],
        "num_images": len(evaluation),
        "extra": {"map_50": {key: round(score[1], 2) for key, score in scores.items()}},
    }


def _mean_average_precision(
    evaluation: DetectionSet, card: ModelCard, found: Sequence[Detections]
) -> tuple[float, float]:
    accuracy = CocoAccuracy(evaluation.annotations, card.num_classes)
    accuracy.update(range(len(found)), found)
    result = accuracy.compute()
    return result.map_50_95, result.map_50


def _evaluate_classifier(
    runners: dict[str, Runner],
    card: ModelCard,
    evaluation: ClassificationSet,
    batch_size: int | None,
    progress: Progress,
) -> dict[str, Any]:
    accuracy = {key: Accuracy() for key in runners}
    chosen: dict[str, list[np.ndarray[Any, Any]]] = {key: [] for key in runners}
    batches = evaluation.batches(batch_size or BATCH)
    for done, batch in enumerate(batches, start=1):
        for key, runner in runners.items():
            logits = infer(runner, batch.images, batch_size)[card.outputs[0]]
            accuracy[key].update(logits, evaluation.labels[batch.indices])
            chosen[key].append(top_class(logits))
        progress("evaluate FP32 and INT8", done, len(batches))
    top5 = {key: round(result.top5, 2) for key, result in accuracy.items()}
    return {
        **_summary("top1", {key: result.top1 for key, result in accuracy.items()}),
        "agreement": round(
            agreement(np.concatenate(chosen["fp32"]), np.concatenate(chosen["quantized"])), 2
        ),
        "num_images": len(evaluation),
        "extra": {"top5": top5},
    }


def pad_batch(images: FloatArray, batch_size: int | None) -> FloatArray:
    """Fill `images` [n, 3, h, w] up to a fixed `batch_size` with zeros; None leaves them."""
    missing = 0 if batch_size is None else batch_size - len(images)
    return np.concatenate([images, np.zeros_like(images[:1]).repeat(missing, axis=0)])


def infer(runner: Runner, images: FloatArray, batch_size: int | None) -> dict[str, Any]:
    """Outputs for `images` `[n, 3, h, w]`; padded with zeros where the model has a larger, fixed batch."""
    outputs = runner.infer({INPUT_NAME: pad_batch(images, batch_size)})
    return {name: value[: len(images)] for name, value in outputs.items()}


def _summary(metric: str, percent: dict[str, float]) -> dict[str, Any]:
    fp32, quantized = round(percent["fp32"], 2), round(percent["quantized"], 2)
    return {
        "metric": metric,
        "fp32": fp32,
        "quantized": quantized,
        "drop": round(fp32 - quantized, 2),  # of what is shown, so that the page adds up
    }
