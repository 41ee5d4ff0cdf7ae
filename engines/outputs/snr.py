"""How close outputs are to the reference's: signal-to-noise ratio and cosine, as streaming sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SignalNoise:
    """Signal-to-noise ratio and cosine of one output over all batches, summed in float64."""

    def __init__(self) -> None:
        self._dot = 0.0
        self._noise = 0.0
        self._reference = 0.0
        self._test = 0.0

    def update(self, reference: NDArray[Any], test: NDArray[Any]) -> None:
        """Add one batch.

        Raises:
            ValueError: The shapes differ.
        """
        if reference.shape != test.shape:
            raise ValueError(f"shapes differ: reference {reference.shape}, test {test.shape}")
        signal, other = reference.ravel().astype(np.float64), test.ravel().astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinity minus infinity: the sums become NaN
            noise = signal - other
            self._dot += float(signal @ other)
            self._noise += float(noise @ noise)
            self._reference += float(signal @ signal)
            self._test += float(other @ other)

    @property
    def is_finite(self) -> bool:
        """Whether neither output holds NaN or infinity."""
        return math.isfinite(self._noise)

    @property
    def snr_db(self) -> float:
        """10 log10(sum of reference² / sum of error²).

        `inf` where the outputs are identical, `-inf` where an output holds NaN or infinity or
        the reference is all zero: neither is JSON, so a report writes them as null.
        """
        if not math.isfinite(self._noise):
            return -math.inf
        if self._noise == 0.0:
            return math.inf
        if self._reference == 0.0:
            return -math.inf
        return 10.0 * math.log10(self._reference / self._noise)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the outputs, in [-1, 1]; 0 where one is not finite."""
        if not math.isfinite(self._noise):
            return 0.0
        if self._noise == 0.0:
            return 1.0
        length = math.sqrt(self._reference) * math.sqrt(self._test)
        return max(-1.0, min(1.0, self._dot / length)) if length > 0.0 else 0.0
