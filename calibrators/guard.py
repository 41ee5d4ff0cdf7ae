"""Where learning starts, and what its result must beat: the baselines on the same quantizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

import torch

from calibrators.base import Batches, Progress, share_of
from calibrators.baselines import clip_weights, observe_activations, scale_weights
from calibrators.best_baseline import (
    baseline_scales,
    compare_scales,
    describe_noise,
    set_activation_scales,
)
from calibrators.execution import float_copy
from calibrators.half_range import shiftable_points
from calibrators.quantized_model import QuantizedModel
from calibrators.quantizers import IntegerGrid
from calibrators.settings import Reconstruction

logger = logging.getLogger(__name__)

GUARD_BATCHES = 4
"""Batches on which the guard compares: five passes over all images would cost a minute."""


class Guard:
    """Calibrates `model` by every baseline, and leaves it at the best.

    Args:
        model: its float network, as it is now, is the reference.
        batches: calibration images.
        chosen: whether all 256 codes of 8 bits are used where that is free.
        progress: called as work advances.
    """

    def __init__(
        self, model: QuantizedModel, batches: Batches, chosen: Reconstruction, progress: Progress
    ) -> None:
        self._model = model
        self._float = float_copy(model)
        scale_weights(model)
        clip_weights(model)
        observers = observe_activations(model, batches, share_of(progress, "baselines", 0.0, 0.6))
        if chosen.half_range:
            use_all_codes(model)
        scales = baseline_scales(model, observers)
        self._images: Sequence[torch.Tensor] = list(islice(iter(batches), GUARD_BATCHES))
        self._noise = compare_scales(
            model, self._images, scales, self._float, share_of(progress, "baselines", 0.6, 1.0)
        )
        self._best = min(self._noise, key=lambda name: self._noise[name])
        set_activation_scales(model, scales[self._best])
        state = model.graph_module.state_dict()
        self._best_state = {name: tensor.clone() for name, tensor in state.items()}

    def keep_better(self, method: str) -> tuple[str, str]:
        """Compare what `method` made of the model with the best baseline; keep the better one.

        Returns:
            The method whose scales the model now has, and every one's SNR as text.
        """
        model = self._model
        current = {name: q.scale.clone() for name, q in model.activation_quantizers.items()}
        ours = compare_scales(model, self._images, {method: current}, self._float)
        noise = {**ours, **self._noise}
        logger.info("%s: %s", method, describe_noise(noise))
        if ours[method] < self._noise[self._best]:
            return method, describe_noise(noise)
        logger.warning(
            "%s is worse than the baseline %s on the calibration images (%s): kept %s",
            method, self._best, describe_noise(noise), self._best,
        )  # fmt: skip
        model.graph_module.load_state_dict(self._best_state)
        return self._best, describe_noise(noise)


def use_all_codes(model: QuantizedModel) -> None:
    """Give every 8-bit quantizer of a shiftable, never negative tensor the codes 0..255."""
    for name in shiftable_points(model):
        quantizer = model.activation_quantizers[name]
        if quantizer.grid.num_bits == 8:
            quantizer.grid = IntegerGrid.unsigned_8_bits()
