"""Accuracy of FP32 and INT8 on the same labelled images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptrt.calibrators.progress import Progress
from reptrt.engines.outputs.box_agreement import detection_agreement
from reptrt.engines.outputs.detection import NMS_OUTPUTS, Detections, FloatArray, read_nms_outputs
from reptrt.engines.outputs.detection import detect as detect_in_maps
from reptrt.engines.outputs.suppression import EVALUATION, Suppression
from reptrt.engines.report_schema import Accuracy
from reptrt.engines.runtime.runners import Runner
from reptrt.models.card import ModelCard
from reptrt.models.inputs import Feed, NetworkInput, count_samples
from reptrt.pipeline.data.datasets import Batch, ClassificationSet, DetectionSet, EvaluationSet
from reptrt.pipeline.data.in_memory import LabelledArrays, MaskedArrays, MetricFunction, as_predict
from reptrt.pipeline.data.masks import MaskSet
from reptrt.pipeline.validation.classification_metrics import (
    TopAccuracy,
    agreement,
    class_divergence,
    top_class,
)
from reptrt.pipeline.validation.detection_metrics import (
    boxes_in_images,
    match_boxes,
)
from reptrt.pipeline.validation.evaluate_batches import (
    BATCH,
    infer,
    most_changed,
    pad_batch,
    rounded,
    rounded_accuracy,
    with_resampled,
)
from reptrt.pipeline.validation.evaluate_masks import evaluate_masks
from reptrt.pipeline.validation.intervals import (
    chance_agreement,
    paired_drop_interval,
    share_interval,
)
from reptrt.pipeline.validation.shown_boxes import count_boxes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of both models on labelled images.

    Attributes:
        accuracy: of both.
        shown: `reptrt.pipeline.validation.shown_boxes.count_boxes` of each image; None without boxes.
        changed: images whose class, or the classes of whose pixels, changed most.
    """

    accuracy: Accuracy
    shown: tuple[tuple[int, int], ...] | None = None
    changed: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassVotes:
    """What both classifiers chose in some images, in their order.

    Attributes:
        accuracy: `fp32`, `quantized` -> counts.
        chosen: likewise, `[n]` classes.
        labels: `[n]`.
        divergence: of the quantized model's class distribution from the float one's, `[n]`, in nats.
    """

    accuracy: Mapping[str, TopAccuracy]
    chosen: Mapping[str, NDArray[np.int64]]
    labels: NDArray[np.int64]
    divergence: FloatArray


Boxes = Mapping[str, list[Detections]]
"""`fp32`, `quantized` -> boxes of each image."""


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
        return _evaluate_by_function(runners, card, evaluation, batch_size, progress)
    if isinstance(evaluation, (MaskSet, MaskedArrays)):
        accuracy, changed = evaluate_masks(runners, card, evaluation, batch_size, progress)
        return Evaluation(accuracy, changed=changed)
    if isinstance(evaluation, DetectionSet):
        boxes = find_boxes(runners, card, evaluation, batch_size, progress)
        return accuracy_of_boxes(boxes, card, evaluation)
    return accuracy_of_votes(count_votes(runners, card, evaluation, batch_size, progress))


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


def find_boxes(
    runners: Mapping[str, Runner],
    card: ModelCard,
    evaluation: DetectionSet,
    batch_size: int | None,
    progress: Progress,
) -> Boxes:
    """Boxes of both models in every image."""
    return {
        key: detect(runners[key], card, evaluation, batch_size, progress)
        for key in ("fp32", "quantized")
    }


def accuracy_of_boxes(found: Boxes, card: ModelCard, evaluation: DetectionSet) -> Evaluation:
    """Accuracy of both detectors by their boxes in all images of `evaluation`."""
    boxes = [found["fp32"], found["quantized"]]
    matches = [match_boxes(evaluation.annotations, card.num_classes, one) for one in boxes]
    fp32, quantized = (one.mean_average_precision() for one in matches)
    others = (*evaluation.annotations[1:], evaluation.annotations[0])
    elsewhere = match_boxes(others, card.num_classes, boxes[0]).mean_average_precision()
    accuracy = rounded_accuracy(
        "map_50_95",
        (fp32.map_50_95, quantized.map_50_95),
        detection_agreement(*boxes),
        len(evaluation),
        {"map_50": (fp32.map_50, quantized.map_50)},
    )
    accuracy = replace(accuracy, chance=round(elsewhere.map_50_95, 2))

    def measure(drawn: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        before, after = (one.of_samples(drawn) for one in matches)
        return before, before - after

    accuracy = with_resampled(accuracy, measure)
    return Evaluation(
        accuracy,
        tuple(count_boxes(*pair) for pair in zip(*boxes, strict=True)),
    )


def count_votes(
    runners: Mapping[str, Runner],
    card: ModelCard,
    evaluation: ClassificationSet | LabelledArrays,
    batch_size: int | None,
    progress: Progress,
) -> ClassVotes:
    """What both models choose in every image."""
    accuracy = {key: TopAccuracy() for key in runners}
    labels: list[NDArray[np.int64]] = []
    chosen: dict[str, list[NDArray[np.int64]]] = {key: [] for key in runners}
    divergence: list[FloatArray] = []
    batches = evaluation.batches(batch_size or BATCH)
    for done, batch in enumerate(batches, start=1):
        labels.append(evaluation.labels[batch.indices])
        logits = {
            key: infer(runner, batch.images, batch_size)[card.outputs[0]]
            for key, runner in runners.items()
        }
        for key, values in logits.items():
            accuracy[key].update(values, labels[-1])
            chosen[key].append(top_class(values))
        divergence.append(class_divergence(logits["fp32"], logits["quantized"]))
        progress("evaluate FP32 and INT8", done, len(batches))
    joined = {key: np.concatenate(parts) for key, parts in chosen.items()}
    return ClassVotes(accuracy, joined, np.concatenate(labels), np.concatenate(divergence))


def accuracy_of_votes(votes: ClassVotes) -> Evaluation:
    """Accuracy of both classifiers by what they chose."""
    fp32, quantized = votes.accuracy["fp32"], votes.accuracy["quantized"]
    classes = [votes.chosen[key] for key in ("fp32", "quantized")]
    found = rounded_accuracy(
        "top1",
        (fp32.top1, quantized.top1),
        agreement(*classes),
        len(votes.labels),
        {"top5": (fp32.top5, quantized.top5)},
    )
    mean = float(votes.divergence.mean())
    found = replace(found, divergence=round(mean, 4) if np.isfinite(mean) else None)
    changed = most_changed(np.where(classes[0] == classes[1], 0.0, votes.divergence))
    return Evaluation(_with_evidence(found, classes[0], classes[1], votes.labels), changed=changed)


def _with_evidence(
    accuracy: Accuracy,
    fp32: NDArray[np.int64],
    quantized: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> Accuracy:
    """Intervals and chance, of the classes `[n]` that each model chose."""
    hits, others = fp32 == labels, quantized == labels
    lost, gained = int(np.sum(hits & ~others)), int(np.sum(others & ~hits))
    if len(labels) > 1 and len(np.unique(labels)) > 1 and len(np.unique(fp32)) == 1:
        logger.warning(
            "FP32 sees the same class in all %d images: check mean, std, channels and weights",
            len(labels),
        )
    return replace(
        accuracy,
        fp32_interval=rounded(share_interval(int(hits.sum()), len(labels)), 100),
        drop_interval=rounded(paired_drop_interval(lost, gained, len(labels)), 100),
        chance=round(100 * chance_agreement(fp32, labels), 2),
        lost=lost,
        gained=gained,
    )


def _evaluate_by_function(
    runners: dict[str, Runner],
    card: ModelCard,
    metric: MetricFunction,
    batch_size: int | None,
    progress: Progress,
) -> Evaluation:
    """Accuracy in the unit of the user's own metric."""
    values = []
    for done, runner in enumerate((runners["fp32"], runners["quantized"]), start=1):
        values.append(
            float(metric.function(as_predict(partial(_infer_any, runner, card.inputs, batch_size))))
        )
        progress(f"evaluate {metric.name}", done, len(runners))
    fp32, quantized = values
    return Evaluation(
        Accuracy(metric=metric.name, fp32=fp32, quantized=quantized, drop=fp32 - quantized)
    )


def _infer_any(
    runner: Runner, inputs: Sequence[NetworkInput], batch_size: int | None, feed: Feed
) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs for any number of samples, in batches that the model takes."""
    if not any(one.batched for one in inputs):
        return runner.infer(dict(feed))
    step, count = batch_size or BATCH, count_samples(feed, inputs)
    parts = []
    for start in range(0, count, step):
        stop = min(start + step, count)
        part = {
            one.name: pad_batch(feed[one.name][start:stop], batch_size)
            if one.batched
            else feed[one.name]
            for one in inputs
        }
        outputs = runner.infer(part)
        size = batch_size or stop - start
        axes = {name: _sample_axis(value.shape, size) for name, value in outputs.items()}
        rows = range(stop - start)
        parts.append({name: value.take(rows, axes[name]) for name, value in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts], axes[name]) for name in parts[0]}


def _sample_axis(shape: Sequence[int], batch: int) -> int:
    """Where an output counts samples: its first axis that is as long as the batch."""
    return next((axis for axis, side in enumerate(shape) if side == batch), 0)
