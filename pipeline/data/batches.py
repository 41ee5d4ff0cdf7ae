"""Batches that are read when they are asked for: any number of images in constant memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.outputs.detection import FloatArray, Letterbox
from reptrt.pipeline.data.preprocess import Prepared

Item = TypeVar("Item", covariant=True)

DECODING_THREADS = 2  # Pillow releases the interpreter lock


class LazyBatches(Generic[Item]):
    """An iterable of batches; each pass yields the same batches in the same order.

    Args:
        count: How many batches there are.
        start: Begins a new pass over them.
    """

    def __init__(self, count: int, start: Callable[[], Iterator[Item]]) -> None:
        self._count = count
        self._start = start

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return self._start()


class ImageSet(ABC):
    """Unlabelled images, for calibration."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the images' names, bytes and order, wherever they are stored."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    def name_of(self, index: int) -> str:
        """How messages name an image."""
        return f"image {index}"

    @abstractmethod
    def at(self, index: int) -> FloatArray:
        """One image `[channels, h, w]` float32, as the batches have it."""

    @abstractmethod
    def batches(self, batch_size: int) -> LazyBatches[FloatArray]:
        """Return batches `[n, 3, h, w]` float32 of `batch_size` images, the last one of the rest."""


@dataclass(frozen=True)
class Batch:
    """Images of an evaluation set.

    Attributes:
        images: `[n, 3, h, w]` float32.
        indices: `[n]` int64, positions in the set: index its labels or annotations with them.
        letterboxes: Where each image lies on its canvas; empty for the `crop` layout.
        image_sizes: Height and width of each image before, in pixels.
    """

    images: FloatArray
    indices: NDArray[np.int64]
    letterboxes: tuple[Letterbox, ...]
    image_sizes: tuple[tuple[int, int], ...]


def prepared_batches(
    load: Callable[[int], Prepared], count: int, batch_size: int
) -> LazyBatches[Batch]:
    """Batch the images 0..count-1 that `load` prepares; the next batch is decoded ahead."""

    def read() -> Iterator[Batch]:
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            waiting: list[Future[Prepared]] = []
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                submitted = [pool.submit(load, index) for index in range(start, stop)]
                if waiting:
                    yield _collate(waiting, start - len(waiting))
                waiting = submitted
            if waiting:
                yield _collate(waiting, count - len(waiting))

    return LazyBatches(num_batches(count, batch_size), read)


def num_batches(count: int, batch_size: int) -> int:
    """Count the batches of `batch_size` that hold `count` images."""
    return -(-count // batch_size)


def _collate(pending: list[Future[Prepared]], first: int) -> Batch:
    items = [future.result() for future in pending]
    return Batch(
        images=np.stack([item.tensor for item in items]),
        indices=np.arange(first, first + len(items), dtype=np.int64),
        letterboxes=tuple(item.letterbox for item in items if item.letterbox is not None),
        image_sizes=tuple(item.source_size for item in items),
    )
