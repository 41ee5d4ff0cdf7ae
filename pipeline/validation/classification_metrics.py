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


def class_divergence(reference: FloatArray, test: FloatArray) -> FloatArray:
    """Kullback-Leibler divergence `[n]`, in nats, of the test's class distribution from the reference's.

    Unlike the class that wins it moves with every image, so that few images tell models apart.

    Args:
        reference: logits `[n, classes]`, or probabilities, which lie in 0..1 and sum to 1.
        test: the same of the other model; NaN gives NaN.
    """
    expected, found = _log_probabilities(reference), _log_probabilities(test)
    divergence: FloatArray = (np.exp(expected) * (expected - found)).sum(axis=1)
    return divergence


def class_probabilities(outputs: FloatArray) -> NDArray[np.float64]:
    """Probabilities `[n, classes]` of outputs that are logits or probabilities already."""
    probabilities: NDArray[np.float64] = np.exp(_log_probabilities(outputs))
    return probabilities


def _log_probabilities(outputs: FloatArray) -> NDArray[np.float64]:
    values = outputs.astype(np.float64)
    is_distribution = bool((values >= 0).all()) and np.allclose(values.sum(axis=1), 1, atol=1e-3)
    if is_distribution:
        values = np.log(np.maximum(values, 1e-12))
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, which is what is shown
        shifted = values - values.max(axis=1, keepdims=True)
        logarithms: NDArray[np.float64] = shifted - np.log(
            np.exp(shifted).sum(axis=1, keepdims=True)
        )
    return logarithms


def _rank(logits: FloatArray, labels: IntArray) -> IntArray:
    """Count per row the classes placed before the label: of equal logits, the first comes first."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    before = ~(logits <= own) | ((logits == own) & earlier)
    rank: IntArray = before.sum(axis=1, dtype=np.int64)
    return rank
