"""The best baseline: learning starts there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from reptrt.calibrators.base import Batches
from reptrt.calibrators.guard import Guard
from reptrt.calibrators.histogram.best import compare_baselines
from reptrt.calibrators.histogram.methods import clip_weights, observe_activations, scale_weights
from reptrt.calibrators.output_noise import (
    compare_scales,
    guard_images,
    remembering,
    set_activation_scales,
)
from reptrt.calibrators.progress import Progress
from reptrt.calibrators.quantized.half_range import shiftable_points
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.settings import Reconstruction

logger = logging.getLogger(__name__)


def start_at_best_baseline(
    model: QuantizedModel, batches: Batches, chosen: Reconstruction, progress: Progress
) -> Guard:
    """Calibrate `model` by every baseline, and leave it at the best.

    Where weights of few bits leave no baseline less noise than signal, chance would choose. The scales of activations
    from which learning starts are those that are the best behind weights of 8 bits then.

    Args:
        model: its float network, as it is now, is the reference.
        batches: calibration images.
        chosen: whether all 256 codes of 8 bits are used where that is free.
        progress: called as work advances.
    """
    images = guard_images(batches)
    reference = remembering(float_copy(model), images)
    scale_weights(model)
    clip_weights(model)
    observers = observe_activations(model, batches, progress)
    if chosen.half_range:
        use_all_codes(model)
    scales, noise = compare_baselines(model, observers, images, reference, progress)
    guard = Guard(model, reference, images, noise)
    if has_few_bits(model) and min(noise.values()) >= 1:
        with weights_of_8_bits(model):
            noise = compare_scales(model, images, scales, reference)
        set_activation_scales(model, scales[min(noise, key=lambda name: noise[name])])
    return guard


def has_few_bits(model: QuantizedModel) -> bool:
    """Whether a weight has fewer than 8 bits."""
    return any(one.grid.num_bits < 8 for one in model.weight_quantizers.values())


@contextmanager
def weights_of_8_bits(model: QuantizedModel) -> Iterator[None]:
    """Let all weights have 8 bits during the block."""
    before = {one: (one.grid, one.scale.clone()) for one in model.weight_quantizers.values()}
    for one in before:
        one.grid = IntegerGrid.for_weights(8)
    scale_weights(model)
    try:
        yield
    finally:
        for one, (grid, scale) in before.items():
            one.grid = grid
            one.scale.copy_(scale)


def use_all_codes(model: QuantizedModel) -> None:
    """Give every 8-bit quantizer of a shiftable, never negative tensor the codes 0..255."""
    for name in shiftable_points(model):
        quantizer = model.activation_quantizers[name]
        if quantizer.grid.num_bits == 8:
            quantizer.grid = IntegerGrid.unsigned(8)
