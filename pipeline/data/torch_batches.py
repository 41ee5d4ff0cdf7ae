"""Calibration images as tensors on the device that calibrates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from reptrt.calibrators.histogram.observers import ObservationError
from reptrt.pipeline.data.batches import ImageSet
from reptrt.pipeline.data.preprocess import DataError

CALIBRATION_BATCH = 16
"""Most images at once."""

_PIXELS = CALIBRATION_BATCH * 320 * 320
"""Of the images at once: a batch of 16 at 640x640 needs gigabytes."""


@dataclass(frozen=True)
class TorchBatches:
    """The first `count` batches of calibration images, as tensors on the device that calibrates."""

    images: ImageSet
    batch_size: int
    count: int
    device: str

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in islice(self.images.batches(self.batch_size), self.count):
            yield torch.from_numpy(batch).to(self.device)


def calibration_batches(images: ImageSet, batch_size: int | None, device: str) -> TorchBatches:
    """All of `images` in batches; for a network with a fixed batch, the incomplete last one is left out.

    Raises:
        DataError: there are too few images for one batch.
    """
    if batch_size is None:
        first = next(iter(images.batches(1)))
        at_once = max(1, min(CALIBRATION_BATCH, _PIXELS // math.prod(first.shape[-2:])))
        return TorchBatches(images, at_once, len(images.batches(at_once)), device)
    count = len(images) // batch_size
    if count == 0:
        raise DataError(f"{len(images)} calibration images do not fill one batch of {batch_size}")
    return TorchBatches(images, batch_size, count, device)


@contextmanager
def naming_images(images: ImageSet) -> Iterator[None]:
    """Say which of `images` it is that calibration stops at."""
    try:
        yield
    except ObservationError as error:
        if error.image is None:
            raise
        raise DataError(f"{images.name_of(error.image)}: {error}") from error
