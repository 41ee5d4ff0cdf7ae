"""The best baseline: learning starts there, and its result is kept only if it is better."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Batch
from reptrt.calibrators.histogram.best import baseline_scales
from reptrt.calibrators.histogram.methods import clip_weights, observe_activations, scale_weights
from reptrt.calibrators.output_noise import (
    Reference,
    compare_scales,
    decibels,
    describe_noise,
    guard_images,
    output_noise,
    set_activation_scales,
)
from reptrt.calibrators.progress import Progress
from reptrt.calibrators.quantized.half_range import shiftable_points
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.settings import Reconstruction

logger = logging.getLogger(__name__)


class Guard:
    """Remembers a calibrated `model`, to compare it with later results.

    Args:
        model: calibrated by the best of the methods in `noise`.
        reference: the float network.
        images: calibration images on which methods are compared.
        noise: method -> noise-to-signal power at the outputs on `images`.
    """

    def __init__(
        self,
        model: QuantizedModel,
        reference: Reference,
        images: Sequence[Batch],
        noise: Mapping[str, float],
    ) -> None:
        self._model, self._float, self._images = model, reference, images
        self._noise = dict(noise)
        self._best = min(noise, key=lambda name: noise[name])
        self._best_state = self._state()

    def take_if_better(self, method: str) -> None:
        """Let `method`, which made the model what it is now, be the best so far; else go back to that."""
        self._noise[method] = output_noise(self._model, self._images, self._float)
        logger.info("%s: %s", method, describe_noise(self._noise))
        if self._noise[method] < self._noise[self._best]:
            self._best, self._best_state = method, self._state()
        else:
            self._model.graph_module.load_state_dict(self._best_state)

    def _state(self) -> dict[str, torch.Tensor]:
        state = self._model.graph_module.state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    def keep_better(self, method: str) -> tuple[str, dict[str, float]]:
        """Compare what `method` made of the model with the best baseline; keep the better one.

        Returns:
            The method whose scales the model now has, and every one's SNR in dB.
        """
        before = self._best
        self.take_if_better(method)
        if self._best != method:
            logger.warning(
                "%s is no better than %s on the calibration images (%s): kept %s",
                method, before, describe_noise(self._noise), before,
            )  # fmt: skip
        ours = {method: self._noise[method]}
        return self._best, decibels({**ours, **self._noise})


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
    reference = float_copy(model)
    scale_weights(model)
    clip_weights(model)
    observers = observe_activations(model, batches, progress)
    if chosen.half_range:
        use_all_codes(model)
    scales = baseline_scales(model, observers, progress)
    images = guard_images(batches)
    noise = compare_scales(model, images, scales, reference, progress)
    set_activation_scales(model, scales[min(noise, key=lambda name: noise[name])])
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
