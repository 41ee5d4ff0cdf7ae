"""`best`: the baseline whose quantized outputs are closest to the float ones.

No baseline is best everywhere: clipping by absolute error rescues MobileOne and harms a vision
transformer. The calibration images tell, without labels: every baseline reads the same histograms,
and one more pass compares each one's outputs with the float network's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from calibrators.base import Batches, CalibrationResult, Calibrator, Progress, no_progress
from calibrators.baselines import (
    EntropyCalibrator,
    HistogramCalibrator,
    MaeCalibrator,
    MinMaxCalibrator,
    MseCalibrator,
    PercentileCalibrator,
    observe_activations,
    scale_weights,
)
from calibrators.execution import float_copy
from calibrators.observers import HistogramObserver
from calibrators.quantized_model import QuantizedModel
from calibrators.registry import register_calibrator

logger = logging.getLogger(__name__)

ActivationScales = Mapping[str, torch.Tensor]
"""Quantizer name -> scale []."""

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

    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`."""
        scale_weights(model)
        scales = baseline_scales(model, observe_activations(model, batches, progress))
        noise = compare_scales(model, batches, scales, float_copy(model), progress)
        best = min(noise, key=lambda name: noise[name])
        set_activation_scales(model, scales[best])
        logger.info("best: kept %s of %s", best, describe_noise(noise))
        return CalibrationResult(
            best, {"Output SNR on the calibration images": describe_noise(noise)}
        )


def baseline_scales(
    model: QuantizedModel, observers: Mapping[str, HistogramObserver]
) -> dict[str, ActivationScales]:
    """Scales of every activation quantizer by every baseline; the model keeps the last one's."""
    scales: dict[str, ActivationScales] = {}
    for candidate in CANDIDATES:
        candidate().scale_activations(model, observers)
        scales[candidate.name] = {
            name: quantizer.scale.clone() for name, quantizer in model.activation_quantizers.items()
        }
    return scales


@torch.no_grad()
def compare_scales(
    model: QuantizedModel,
    batches: Sequence[torch.Tensor] | Batches,
    scales: Mapping[str, ActivationScales],
    reference: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Noise-to-signal power at the outputs, averaged over outputs, for each set of scales.

    `reference` is the float network.
    """
    signal = torch.zeros(1)
    noise = {name: torch.zeros(1) for name in scales}
    for done, batch in enumerate(batches, start=1):
        expected = reference(batch)
        signal = signal + _power(expected)
        for name, candidate in scales.items():
            set_activation_scales(model, candidate)
            error = [a - b for a, b in zip(model(batch), expected, strict=True)]
            noise[name] = noise[name] + _power(error)
        progress("compare baselines", done, len(batches))
    # An output that is always zero has no SNR and says nothing about the scales.
    ratios = {name: torch.where(signal > 0, power / signal, 0.0) for name, power in noise.items()}
    return {name: float(ratio.mean()) for name, ratio in ratios.items()}


def describe_noise(noise: Mapping[str, float]) -> str:
    """Noise-to-signal ratios as text, in dB."""
    return ", ".join(f"{name} {decibel(value):.1f} dB" for name, value in noise.items())


def decibel(noise_to_signal: float) -> float:
    """SNR in dB of a noise-to-signal power ratio."""
    return math.inf if noise_to_signal == 0 else -10 * math.log10(noise_to_signal)


def set_activation_scales(model: QuantizedModel, scales: ActivationScales) -> None:
    """Copy `scales` (quantizer name -> scale) into the activation quantizers."""
    for name, scale in scales.items():
        model.activation_quantizers[name].scale.copy_(scale)


def _power(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([output.double().square().sum().cpu() for output in outputs])
