"""Top-1 and top-5 accuracy, summed batch by batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.outputs.detection import FloatArray

IntArray = NDArray[np.int64]

_TOP = 5


class TopAccuracy:
    """Top-1 and top-5 over all batches, in percent; top-5 is top-C with fewer than 5 classes."""

    def __init__(self) -> None:
        self._first = 0
        self._among_five = 0
        self.num_images = 0

    def update(self, logits: FloatArray, labels: IntArray) -> None:
        """Add logits `[n, classes]` and their labels `[n]`; a NaN beats every label."""
        rank = _rank(logits, labels)
        self._first += int(np.count_nonzero(rank == 0))
        self._among_five += int(np.count_nonzero(rank < min(_TOP, logits.shape[1])))
        self.num_images += len(labels)

    def merge(self, other: TopAccuracy) -> None:
        """Add the counts of other images."""
        self._first += other._first
        self._among_five += other._among_five
        self.num_images += other.num_images

    @property
    def top1(self) -> float:
        """Percent of images whose label has the highest logit."""
        return 100.0 * self._first / self.num_images

    @property
    def top5(self) -> float:
        """Percent of images whose label has one of the five highest logits."""
        return 100.0 * self._among_five / self.num_images


def top_class(logits: FloatArray) -> IntArray:
    """Return the class `[n]` of the highest logit `[n, classes]`, the first of equal ones.

    It is -1 for a row with NaN.
    """
    best: IntArray = np.argmax(logits, axis=1).astype(np.int64)
    best[np.isnan(logits).any(axis=1)] = -1
    return best


def agreement(reference: IntArray, test: IntArray) -> float:
    """Percent of images whose `top_class` `[n]` equals the reference's; -1 agrees with nothing."""
    return 100.0 * float(np.mean((reference == test) & (reference >= 0)))


def _rank(logits: FloatArray, labels: IntArray) -> IntArray:
    """Count per row the classes placed before the label: of equal logits, the first comes first."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    before = ~(logits <= own) | ((logits == own) & earlier)
    rank: IntArray = before.sum(axis=1, dtype=np.int64)
    return rank
