"""Streaming histograms of activations, in memory that does not grow with the images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

NUM_BINS = 1 << 16
MIN_LIMIT = 2.0**-100
"""Smallest upper edge: below it, bins per unit overflow float32."""


class HistogramObserver:
    """Histogram of |x| with a range that doubles whenever a larger value arrives.

    Doubling merges neighbouring bins, so counts stay exact and do not depend on how the images are
    batched, but for the first batch, which sets the bin width. With 2^16 bins an outlier 100 times
    larger than the bulk still leaves more than 600 bins for the bulk.

    Attributes:
        amax: largest |x| seen.
        minimum: smallest x seen.
        counts: [NUM_BINS] float64 number of elements per bin.
        limit: upper edge of the last bin.
    """

    def __init__(self) -> None:
        self.amax = 0.0
        self.minimum = float("inf")
        self.limit = 0.0
        self.counts = torch.zeros(NUM_BINS, dtype=torch.float64)

    def observe(self, x: torch.Tensor) -> None:
        """Add every element of `x`."""
        low, high = (float(bound) for bound in torch.aminmax(x.detach()))
        amax = max(-low, high)
        if not math.isfinite(amax):
            finite = x.detach().flatten(1).isfinite().all(1) if x.ndim > 1 else x.isfinite().all()
            raise ObservationError(
                "calibration met a NaN or infinite activation; check the weights and the "
                "preprocessing (mean, std) of the images",
                None if bool(finite.all()) else int(finite.int().argmin()),
            )
        self.amax = max(self.amax, amax)
        self.minimum = min(self.minimum, low)
        self._grow(amax)
        if self.limit == 0:
            self.counts[0] += x.numel()
        else:
            magnitude = x.detach().flatten().abs().float()
            index = (magnitude * (NUM_BINS / self.limit)).int().clamp_(max=NUM_BINS - 1)
            self.counts += torch.bincount(index, minlength=NUM_BINS).cpu()

    def centers(self) -> torch.Tensor:
        """[NUM_BINS] value at the middle of each bin."""
        return (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * (self.limit / NUM_BINS)

    def _grow(self, amax: float) -> None:
        if self.limit == 0 and amax > 0:
            self.limit = max(amax, MIN_LIMIT)
        while amax > self.limit:
            half = NUM_BINS // 2
            merged = self.counts.view(half, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros(half, dtype=torch.float64)])
            self.limit *= 2


class ObservationError(ValueError):
    """The calibration data gave no usable statistics.

    Attributes:
        image: index of the image that is to blame, of its batch or of all; None where none is.
        tensor: name of the quantizer that saw it.
    """

    exit_code = 2

    def __init__(self, message: str, image: int | None = None) -> None:
        super().__init__(message)
        self.image = image
        self.tensor = ""


@contextmanager
def observing(
    quantizers: Mapping[str, TensorQuantizer],
) -> Iterator[dict[str, HistogramObserver]]:
    """Attach one observer to the input of each quantizer."""
    observers = {name: HistogramObserver() for name in quantizers}
    hooks = [
        quantizer.register_forward_pre_hook(
            lambda _, arguments, name=name: _observe(name, observers[name], arguments[0])
        )
        for name, quantizer in quantizers.items()
    ]
    try:
        yield observers
    finally:
        for hook in hooks:
            hook.remove()


def _observe(name: str, observer: HistogramObserver, x: torch.Tensor) -> None:
    try:
        observer.observe(x)
    except ObservationError as error:
        error.tensor = name
        raise
