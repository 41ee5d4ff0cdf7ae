"""Calibration samples as tensors on the device that calibrates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from reptrt.calibrators.feed import Batch
from reptrt.calibrators.feed import Feed as TensorFeed
from reptrt.calibrators.histogram.observers import ObservationError
from reptrt.models.inputs import Feed, NetworkInput
from reptrt.pipeline.data.feeds import FeedSet
from reptrt.pipeline.data.preprocess import DataError

CALIBRATION_BATCH = 16
"""Most images at once."""

_VALUES = CALIBRATION_BATCH * 3 * 320 * 320
"""Of the images at once: a batch of 16 at 640x640 needs gigabytes."""


@dataclass(frozen=True)
class TorchBatches:
    """Batches of calibration samples, as tensors on the device that calibrates.

    Attributes:
        samples: what is read.
        batch_size: most samples of a batch.
        device: of PyTorch.
        is_fixed: the network takes batches of `batch_size` alone; what does not fill one is left out.
    """

    samples: FeedSet
    batch_size: int
    device: str
    is_fixed: bool = False

    def __len__(self) -> int:
        sizes = self.samples.sizes(self.batch_size)
        return sum(map(self._is_whole, sizes))

    def __iter__(self) -> Iterator[Batch]:
        sizes = self.samples.sizes(self.batch_size)
        for size, feed in zip(sizes, self.samples.feeds(self.batch_size), strict=True):
            if self._is_whole(size):
                yield as_batch(feed, self.samples.inputs, self.device)

    def _is_whole(self, size: int) -> bool:
        return not self.is_fixed or size == self.batch_size


def as_batch(values: Feed, inputs: Sequence[NetworkInput], device: str) -> Batch:
    """`values` as tensors, in the order of `inputs`; images alone as one tensor."""
    tensors = tuple(torch.from_numpy(values[one.name]).to(device) for one in inputs)
    if len(inputs) == 1 and inputs[0].batched:
        return tensors[0]
    return TensorFeed(tensors, tuple(one.batched for one in inputs))


def calibration_batches(samples: FeedSet, batch_size: int | None, device: str) -> TorchBatches:
    """All of `samples` in batches; for a network with a fixed batch, incomplete ones are left out.

    Raises:
        DataError: there are too few samples for one batch.
    """
    if batch_size is None:
        values = sum(math.prod(one.sides) for one in samples.inputs)
        at_once = max(1, min(CALIBRATION_BATCH, _VALUES // max(1, values)))
        return TorchBatches(samples, at_once, device)
    batches = TorchBatches(samples, batch_size, device, is_fixed=True)
    if not len(batches):
        raise DataError(f"{len(samples)} calibration images do not fill one batch of {batch_size}")
    return batches


@contextmanager
def naming_images(images: FeedSet) -> Iterator[None]:
    """Say which of `images` it is that calibration stops at."""
    try:
        yield
    except ObservationError as error:
        if error.image is None:
            raise
        raise DataError(f"{images.name_of(error.image)}: {error}") from error
