"""The best of several methods, by the noise at the outputs: a result is kept only where it is better."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from reptrt.calibrators.feed import Batch
from reptrt.calibrators.output_noise import (
    Reference,
    decibels,
    describe_noise,
    fine_noise,
    output_noise,
)
from reptrt.calibrators.quantized.quantized_model import QuantizedModel

logger = logging.getLogger(__name__)


class Guard:
    """Remembers a calibrated `model`, to compare it with later results.

    Args:
        model: calibrated by the best of the methods in `noise`.
        reference: the float network.
        images: calibration images on which methods are compared.
        noise: method -> noise-to-signal power at the outputs on `images`.

    Attributes:
        best: the method that made the model what it is to be.
        noise: as given, and of what was compared later.
    """

    def __init__(
        self,
        model: QuantizedModel,
        reference: Reference,
        images: Sequence[Batch],
        noise: Mapping[str, float],
    ) -> None:
        self._model, self._float, self._images = model, reference, images
        self.noise = dict(noise)
        self.best = min(noise, key=lambda name: noise[name])
        self._state_of_best = self._state()

    def take_if_better(self, method: str) -> None:
        """Let `method`, which made the model what it is now, be the best so far; else go back to that."""
        self.noise[method] = output_noise(self._model, self._images, self._float)
        logger.info("%s: %s", method, describe_noise(self.noise))
        if self.noise[method] < self.noise[self.best]:
            self.best, self._state_of_best = method, self._state()
        else:
            self._model.graph_module.load_state_dict(self._state_of_best)

    @property
    def is_fine(self) -> bool:
        """Whether the best so far needs no further calibration."""
        return self.noise[self.best] < fine_noise(self._model, self._images, self._float)

    def _state(self) -> dict[str, torch.Tensor]:
        state = self._model.graph_module.state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    def keep_better(self, method: str) -> tuple[str, dict[str, float]]:
        """Compare what `method` made of the model with the best baseline; keep the better one.

        Returns:
            The method whose scales the model now has, and every one's SNR in dB.
        """
        before = self.best
        self.take_if_better(method)
        if self.best != method:
            logger.warning(
                "%s is no better than %s on the calibration images (%s): kept %s",
                method, before, describe_noise(self.noise), before,
            )  # fmt: skip
        ours = {method: self.noise[method]}
        return self.best, decibels({**ours, **self.noise})
