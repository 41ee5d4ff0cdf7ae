"""Calibrate a network, by what `auto` knows until its outputs are close enough to float."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from reptrt.calibrators.auto import other_calibrators
from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.channels.rewrite import describe_factors
from reptrt.calibrators.feed import Batch, tensors_of
from reptrt.calibrators.names import AUTO
from reptrt.calibrators.output_noise import decibel, worst_noise
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.half_rest import HalfRest
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.sensitivity import compared_images, shaken_images
from reptrt.calibrators.settings import ENOUGH_SNR, NO_CALIBRATOR, Settings
from reptrt.pipeline.data.torch_batches import calibration_batches
from reptrt.pipeline.export.prepare import Network
from reptrt.pipeline.observations import observed
from reptrt.pipeline.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrated:
    """A network with scales, and how its calibrator describes them."""

    network: Network
    result: CalibrationResult


def choose_scales(run: Run, checkpoint: Path) -> Calibrated:
    """Calibrate with the plan's calibrator; `auto` tries the next one where outputs fall short.

    Args:
        run: what is calibrated.
        checkpoint: folder for finished blocks of a calibrator that learns.
    """
    plan = run.plan
    best = _calibrate(run, plan.calibrator, checkpoint)
    if plan.min_snr == 0 or run.recipe.calibrator != AUTO:
        return best
    for name in other_calibrators(plan.calibrator):
        if is_close_enough(best.result, plan.least_snr):
            break
        found = _calibrate(run, name, checkpoint)
        logger.info(
            "%s falls short of %.1f dB: %s instead has %s dB",
            best.result.method, plan.least_snr, name, found.result.snr_db,
        )  # fmt: skip
        best = max(best, found, key=lambda one: _decibel(one.result))
    return best


def is_close_enough(result: CalibrationResult, least_snr: float) -> bool:
    """Whether every part of the outputs has `least_snr` dB on the calibration images."""
    return _decibel(result) >= least_snr


def _decibel(result: CalibrationResult) -> float:
    return float("inf") if result.snr_db is None else result.snr_db


def _calibrate(run: Run, name: str, checkpoint: Path) -> Calibrated:
    plan, network = run.plan, run.make_network()
    if not network.quantized.activation_quantizers:
        return Calibrated(network, CalibrationResult(NO_CALIBRATOR, num_samples=len(run.samples)))
    batches = calibration_batches(run.samples, network.card.batch_size, plan.device)
    settings = Settings(
        *(plan.seed, plan.reconstruction, int(plan.max_memory), checkpoint, plan.effort),
        max(plan.min_snr, ENOUGH_SNR),
    )
    calibrator = create_calibrator(name, settings)
    if calibrator.reads_histograms:
        calibrator.settings = replace(settings, histograms=observed(run, network, batches))
    result = calibrator.calibrate(network.quantized, batches, run.progress)
    if run.channels:
        result.notes["Channels scaled"] = describe_factors(network.quantized, run.channels)
    round_biases(network.quantized)
    images = compared_images(network.quantized, batches)
    quantized = network.quantized
    snr = _worst_snr(
        HalfRest.of(quantized) if plan.precision == "fp16" else quantized, network, images
    )
    return Calibrated(network, replace(result, num_samples=len(run.samples), snr_db=snr))


@torch.no_grad()
def _worst_snr(
    quantized: QuantizedModel, network: Network, images: Sequence[Batch]
) -> float | None:
    """SNR in dB of the worst part of the outputs, chance asked more than once; None where every part is exact."""

    def expected(batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(tree_leaves(network.float_graph(*tensors_of(batch))))

    draws = [images, *shaken_images(images)]
    noises = [worst_noise(quantized, draw, expected) for draw in draws]
    noise = math.nan if any(map(math.isnan, noises)) else max(noises)
    if math.isnan(noise):
        return -math.inf
    return None if noise == 0 else round(decibel(noise), 2)
