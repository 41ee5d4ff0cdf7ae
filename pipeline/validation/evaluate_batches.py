"""What every evaluation shares: batches that fit the model, and results as they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.outputs.detection import FloatArray
from reptrt.engines.report_schema import Accuracy, Interval, MetricPair
from reptrt.engines.runtime.runners import Runner
from reptrt.models.inputs import IMAGES
from reptrt.pipeline.validation.intervals import FEWEST_RESAMPLED, resampled_intervals

Pair = tuple[float, float]
"""A metric of FP32 and of INT8, in percent."""

MOST_CHANGED = 6
"""Labelled images that a report shows."""
BATCH = 8
"""Images at once where the batch is dynamic."""


def pad_batch(images: FloatArray, batch_size: int | None) -> FloatArray:
    """Fill `images` [n, 3, h, w] up to a fixed `batch_size` with zeros; None leaves them."""
    missing = 0 if batch_size is None else batch_size - len(images)
    return np.concatenate([images, np.zeros_like(images[:1]).repeat(missing, axis=0)])


def infer(runner: Runner, images: FloatArray, batch_size: int | None) -> dict[str, Any]:
    """Outputs for `images` `[n, 3, h, w]`; padded with zeros where the model has a larger, fixed batch."""
    outputs = runner.infer({IMAGES: pad_batch(images, batch_size)})
    return {name: value[: len(images)] for name, value in outputs.items()}


def most_changed(difference: NDArray[Any]) -> tuple[int, ...]:
    """Images, worst first, of how far both models are apart on each `[n]`; 0 is not apart, NaN very far."""
    far = np.nan_to_num(difference.astype(np.float64), nan=np.inf)
    worst = np.argsort(-far, kind="stable")[:MOST_CHANGED]
    return tuple(int(index) for index in worst if far[index] > 0)


def rounded_accuracy(
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


def with_resampled(
    accuracy: Accuracy,
    measure: Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Accuracy:
    """Add intervals by a bootstrap over the images; none on too few of them.

    Args:
        accuracy: of all images.
        measure: FP32's accuracy and the drop, in percent, of samples of the images [samples, images]: two of [samples].
    """
    count = accuracy.num_images or 0
    if count < FEWEST_RESAMPLED:
        return accuracy
    fp32, drop = resampled_intervals(measure, count)
    return replace(accuracy, fp32_interval=rounded(fp32), drop_interval=rounded(drop))


def rounded(interval: Interval, scale: float = 1) -> Interval:
    """Both ends times `scale`, as they are shown."""
    return round(scale * interval[0], 2), round(scale * interval[1], 2)
