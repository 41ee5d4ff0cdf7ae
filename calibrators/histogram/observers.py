"""Streaming histograms of activations, in memory that does not grow with the images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

NUM_BINS = 1 << 16
MIN_EXPONENT = -100
"""Of the smallest upper edge, a power of two: below it, bins per unit overflow float32."""


class HistogramObserver:
    """Histogram of |x| on a grid that all observers share: its range is a power of two.

    The range doubles whenever a larger value arrives, which merges neighbouring bins. So counts are exact:
    they depend neither on how the images are batched nor on their order, and those of several observers
    add up (`merge`). With 2^16 bins an outlier 100 times larger than the bulk still leaves more than
    300 bins for the bulk.

    Attributes:
        amax: largest |x| seen.
        minimum: smallest x seen.
        counts: [NUM_BINS] float64 number of elements per bin.
        limit: upper edge of the last bin, above `amax`; 0 as long as nothing but zeros was seen.
    """

    def __init__(self) -> None:
        self.amax = 0.0
        self.minimum = float("inf")
        self.limit = 0.0
        self.counts = torch.zeros(NUM_BINS, dtype=torch.float64)

    def observe(self, x: torch.Tensor) -> None:
        """Add every element of `x`."""
        values = x.detach().float()
        low, high = (float(bound) for bound in torch.aminmax(values))
        amax = max(-low, high)
        if not math.isfinite(amax):
            finite = values.flatten(1).isfinite().all(1) if x.ndim > 1 else values.isfinite().all()
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
            index = (values.flatten().abs() * (NUM_BINS / self.limit)).int()
            self.counts += torch.bincount(index, minlength=NUM_BINS).cpu()

    def merge(self, other: HistogramObserver) -> None:
        """Add what `other` has seen; the order does not matter."""
        self._grow(other.amax)
        same_grid = HistogramObserver()
        same_grid.counts, same_grid.limit = other.counts, other.limit
        same_grid._grow(self.amax)
        self.amax = max(self.amax, other.amax)
        self.minimum = min(self.minimum, other.minimum)
        self.counts = self.counts + same_grid.counts

    def centers(self) -> torch.Tensor:
        """[NUM_BINS] value at the middle of each bin."""
        return (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * (self.limit / NUM_BINS)

    def _grow(self, amax: float) -> None:
        if amax == 0:
            return
        limit = 2.0 ** max(
            math.frexp(amax)[1], MIN_EXPONENT
        )  # above amax, which may be a power of two
        if self.limit == 0:
            self.limit = limit
        while self.limit < limit:
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
