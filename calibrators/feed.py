"""A batch of a network that reads something else than one image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

_IMAGE_AXES, _COLOURS = 4, 3
_SHAKE = 1e-5


@dataclass(frozen=True)
class Feed:
    """Tensors in the order in which the network reads them.

    Attributes:
        tensors: one for each input.
        batched: of each, whether its first axis counts samples; the others are the same for all.
    """

    tensors: tuple[torch.Tensor, ...]
    batched: tuple[bool, ...]

    def __len__(self) -> int:
        """Samples: 1 where nothing counts them."""
        both = zip(self.tensors, self.batched, strict=True)
        return next((len(tensor) for tensor, batched in both if batched), 1)

    def __getitem__(self, rows: slice) -> Feed:
        """Some of the samples."""
        both = zip(self.tensors, self.batched, strict=True)
        return replace(self, tensors=tuple(t[rows] if batched else t for t, batched in both))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tensors[0].device


Batch = torch.Tensor | Feed
"""Images [N, C, H, W], or what a network with other inputs reads."""


def tensors_of(batch: Batch) -> tuple[torch.Tensor, ...]:
    """What the network is called with."""
    return batch.tensors if isinstance(batch, Feed) else (batch,)


def shake(batch: Batch, seed: int) -> Batch:
    """The batch with its floats moved by a hundred thousandth: as far as nothing that means something is.

    Where values lie between two codes this decides which they get, as it does whose arithmetic rounds them.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return tensor * (1 + _SHAKE * noise)

    if isinstance(batch, torch.Tensor):
        return moved(batch)
    return replace(batch, tensors=tuple(moved(tensor) for tensor in batch.tensors))


def first_images(
    batches: Iterable[Batch], count: int, pixels: float = math.inf, at_once: float = math.inf
) -> Iterator[Batch]:
    """The first images of `batches`, in order.

    Args:
        batches: of images.
        count: at most so many images.
        pixels: of all of them, at most; one image is always taken.
        at_once: pixels of a batch that is returned, at most, but for one image; without it, batches stay whole.
    """
    for batch in batches:
        own = num_pixels(batch)
        count = min(count, max(1, int(pixels // own)) if pixels < math.inf else count)
        is_whole, start = at_once == math.inf, 0
        while count > 0 and start < len(batch):
            size = len(batch) if is_whole else min(count, max(1, int(at_once // own)))
            chunk = batch[start : start + size]
            yield chunk
            start += len(chunk)
            count, pixels = count - len(chunk), pixels - own * len(chunk)
        if count <= 0:
            return


def num_pixels(batch: Batch) -> int:
    """Of one image; of a sample of other inputs a third of its values."""
    if isinstance(batch, torch.Tensor) and batch.ndim == _IMAGE_AXES:
        return math.prod(batch.shape[-2:])
    return max(1, num_values(batch) // (_COLOURS * len(batch)))


def num_values(batch: Batch) -> int:
    """Values of all samples."""
    return sum(tensor.numel() for tensor in tensors_of(batch))
