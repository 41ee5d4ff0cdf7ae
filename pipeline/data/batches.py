"""Batches that are read when they are asked for: any number of images in constant memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.outputs.detection import FloatArray, Letterbox
from reptrt.pipeline.data.preprocess import Prepared

Item = TypeVar("Item", covariant=True)

DECODING_THREADS = 2  # Pillow releases the interpreter lock
FEWEST_LEFT, MOST_LEFT = 50, 2000
"""Samples that a draw must leave to be judged by alone, and the most of them that are looked at."""


@dataclass(frozen=True)
class Draw:
    """Which samples of a source are taken.

    Attributes:
        limit: at most this many, drawn at random; None takes all.
        seed: of the draw.
        is_rest: take those that this draw leaves, 2000 at most; all samples where it leaves fewer than 50.
    """

    limit: int | None = None
    seed: int = 0
    is_rest: bool = False

    def choose(self, count: int) -> Sequence[int]:
        """Positions among `count` samples, ascending."""
        drawn = _draw(count, self.limit, self.seed)
        if not self.is_rest:
            return drawn
        taken = set(drawn)
        left = [index for index in range(count) if index not in taken]
        left = left if len(left) >= FEWEST_LEFT else list(range(count))
        return [left[index] for index in _draw(len(left), MOST_LEFT, self.seed)]


EVERY = Draw()


def _draw(count: int, limit: int | None, seed: int) -> Sequence[int]:
    """Draw `limit` of `count` positions, ascending; all of them if there are no more."""
    if limit is None or limit >= count:
        return range(count)
    drawn = np.random.default_rng(seed).choice(count, limit, replace=False)
    return sorted(int(index) for index in drawn)


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
