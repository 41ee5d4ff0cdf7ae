"""`best`: the baseline whose quantized outputs are closest to the float ones.

No baseline is best everywhere: clipping by absolute error rescues MobileOne and harms a vision
transformer. The calibration images tell, without labels: every baseline reads the same histograms,
and one more pass compares each one's outputs with the float network's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from reptrt.calibrators.base import Batches, CalibrationResult, Calibrator
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
    compare_scales,
    decibels,
    describe_noise,
    set_activation_scales,
)
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.registry import register_calibrator

logger = logging.getLogger(__name__)


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
        scales = baseline_scales(model, observers, progress)
        noise = compare_scales(model, batches, scales, float_copy(model), progress)
        best = min(noise, key=lambda name: noise[name])
        set_activation_scales(model, scales[best])
        logger.info("best: kept %s of %s", best, describe_noise(noise))
        return CalibrationResult(best, compared=decibels(noise))


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
