"""Accuracy of FP32 and INT8 on images with masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reptrt.calibrators.progress import Progress
from reptrt.engines.report_schema import Accuracy
from reptrt.engines.runtime.runners import Runner
from reptrt.models.card import ModelCard
from reptrt.pipeline.data.in_memory import MaskedArrays
from reptrt.pipeline.data.masks import VOID, MaskSet
from reptrt.pipeline.validation.evaluate_batches import (
    BATCH,
    infer,
    most_changed,
    rounded_accuracy,
    with_resampled,
)
from reptrt.pipeline.validation.segmentation_metrics import (
    MaskAccuracy,
    read_classes,
)


def evaluate_masks(
    runners: Mapping[str, Runner],
    card: ModelCard,
    evaluation: MaskSet | MaskedArrays,
    batch_size: int | None,
    progress: Progress,
) -> tuple[Accuracy, tuple[int, ...]]:
    """Mean IoU of both models with the share of pixels in which they agree, and the images where they do least.

    Args:
        runners: `fp32` and `quantized`.
        card: the first output is what is measured.
        evaluation: images with masks.
        batch_size: fixed batch of the models; None where it is dynamic.
        progress: called as work advances.
    """
    count = len(evaluation)
    accuracy = {key: MaskAccuracy(count) for key in runners}
    elsewhere = MaskAccuracy(count)
    same, pixels = np.zeros(count), np.zeros(count)
    other = evaluation.classes_of(count - 1)  # the mask of the image before: what chance reaches
    batches = evaluation.batches(batch_size or BATCH)
    for done, batch in enumerate(batches, start=1):
        found = {
            key: read_classes(
                infer(runner, batch.images, batch_size)[card.outputs[0]],
                card.preprocess.image_size,
            )
            for key, runner in runners.items()
        }
        for row, index in enumerate(batch.indices):
            mask = evaluation.classes_of(int(index))
            for key, classes in found.items():
                accuracy[key].update(int(index), classes[row], mask)
            elsewhere.update(int(index), found["fp32"][row], other)
            other, counted = mask, mask != VOID
            is_same = found["fp32"][row] == found["quantized"][row]
            same[index] = np.count_nonzero(is_same & counted)
            pixels[index] = np.count_nonzero(counted)
        progress("evaluate FP32 and INT8", done, len(batches))
    fp32, quantized = accuracy["fp32"], accuracy["quantized"]
    agreement = 100 * same.sum() / max(1, pixels.sum())
    means = (fp32.mean_iou(), quantized.mean_iou())
    made = rounded_accuracy("miou", means, float(agreement), count, {})

    def measure(drawn: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        before, after = (
            np.array([one.mean_iou(sample) for sample in drawn]) for one in (fp32, quantized)
        )
        return before, before - after

    resampled = with_resampled(replace(made, chance=round(elsewhere.mean_iou(), 2)), measure)
    return resampled, most_changed((pixels - same) / np.maximum(1, pixels))
