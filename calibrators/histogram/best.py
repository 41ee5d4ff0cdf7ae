"""`best`: the baseline whose quantized outputs are closest to the float ones.

No baseline is best everywhere: clipping by absolute error rescues MobileOne and harms a vision
transformer. The calibration images tell, without labels: every baseline reads the same histograms,
and one more pass compares each one's outputs with the float network's. Behind them come a choice for each tensor
(`reptrt.calibrators.histogram.by_tensor`) and, with the best of all, corrected biases
(`reptrt.calibrators.correct_biases`); each is kept where it is better, and left out where the outputs are fine without it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from reptrt.calibrators.base import Batches, CalibrationResult, Calibrator
from reptrt.calibrators.correct_biases import correct_biases
from reptrt.calibrators.feed import Batch
from reptrt.calibrators.guard import Guard
from reptrt.calibrators.histogram.by_tensor import scales_by_tensor
from reptrt.calibrators.histogram.methods import (
    EntropyCalibrator,
    HistogramCalibrator,
    MaeCalibrator,
    MinMaxCalibrator,
    MseCalibrator,
    PercentileCalibrator,
    read_or_observe,
    scale_weights,
)
from reptrt.calibrators.histogram.observers import HistogramObserver
from reptrt.calibrators.output_noise import (
    ActivationScales,
    Reference,
    compare_scales,
    decibels,
    describe_noise,
    fine_noise,
    guard_images,
    remembering,
    set_activation_scales,
)
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.registry import register_calibrator

logger = logging.getLogger(__name__)


BY_TENSOR = "by-tensor"
"""Among the baselines: the clip of each tensor by itself."""
CANDIDATES: tuple[type[HistogramCalibrator], ...] = (
    MinMaxCalibrator,
    PercentileCalibrator,
    EntropyCalibrator,
    MseCalibrator,
    MaeCalibrator,
)


@register_calibrator
class BestBaselineCalibrator(Calibrator):
    """Run every baseline, keep the one with the least noise at the outputs."""

    name = "best"
    summary = "the baseline whose outputs are closest to float on the calibration images"
    reads_histograms = True

    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`."""
        scale_weights(model)
        observers = read_or_observe(model, batches, self.settings.histograms, progress)
        images = guard_images(batches)
        reference = remembering(float_copy(model), images)
        _, noise = compare_baselines(model, observers, images, reference, progress)
        guard = Guard(model, reference, images, noise)
        if not guard.is_fine:
            correct_biases(model, images, progress)
            guard.take_if_better(with_biases(guard.best))
        logger.info("best: kept %s of %s", guard.best, describe_noise(guard.noise))
        return CalibrationResult(guard.best, compared=decibels(guard.noise))


def with_biases(baseline: str) -> str:
    """What `baseline` is called, where biases are corrected behind it."""
    return f"{baseline} + biases"


def compare_baselines(
    model: QuantizedModel,
    observers: Mapping[str, HistogramObserver],
    images: Sequence[Batch],
    reference: Reference,
    progress: Progress = no_progress,
) -> tuple[dict[str, ActivationScales], dict[str, float]]:
    """Scales by every baseline, and the noise that each leaves at the outputs; the model gets the best one's.

    Args:
        model: its weights have scales.
        observers: histograms of what its activation quantizers read.
        images: on which the baselines are compared, and scales of each tensor chosen.
        reference: the float network.
        progress: called as work advances.
    """
    scales = baseline_scales(model, observers, progress)
    noise = compare_scales(model, images, scales, reference, progress)
    best = min(noise, key=lambda name: noise[name])
    if noise[best] >= fine_noise(model, images, reference):
        scales[BY_TENSOR] = scales_by_tensor(model, images, scales, best, progress)
        noise |= compare_scales(model, images, {BY_TENSOR: scales[BY_TENSOR]}, reference)
        best = min(noise, key=lambda name: noise[name])
    set_activation_scales(model, scales[best])
    return scales, noise


def baseline_scales(
    model: QuantizedModel,
    observers: Mapping[str, HistogramObserver],
    progress: Progress = no_progress,
) -> dict[str, ActivationScales]:
    """Scales of every activation quantizer by every baseline; the model keeps the last one's."""
    scales: dict[str, ActivationScales] = {}
    for done, candidate in enumerate(CANDIDATES, start=1):
        candidate().scale_activations(model, observers)
        scales[candidate.name] = {
            name: quantizer.scale.clone() for name, quantizer in model.activation_quantizers.items()
        }
        progress("choose scales", done, len(CANDIDATES))
    return scales
