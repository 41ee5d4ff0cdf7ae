"""What a network reads: one image, or any named tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]
Feed = Mapping[str, Array]
"""Values of inputs, by name."""

PictureLayout = Literal["chw", "hwc"]
IMAGES = "images"
"""Name of the input of a network that reads one image and nothing else."""


class InputError(ValueError):
    """Samples and what a network reads do not go together."""

    exit_code = 2


@dataclass(frozen=True)
class NetworkInput:
    """One input.

    Attributes:
        name: As the engine has it.
        dtype: NumPy's name of its type.
        sides: Its shape, without the batch where it has one; the usual sizes of what stays open.
        batched: Whether its first axis counts samples; else all samples of a batch share its values.
        picture: Where the channels of a picture go, if pictures can feed it; else None.
        peak: Largest random value to try it with: 255 for pixels, else 1.
        smallest: Like `sides`, the least that stays legal; None where nothing is open.
        largest: Like `sides`, the most that stays legal; None where nothing is open.
    """

    name: str
    dtype: str
    sides: tuple[int, ...]
    batched: bool = True
    picture: PictureLayout | None = None
    peak: float = 1.0
    smallest: tuple[int, ...] | None = None
    largest: tuple[int, ...] | None = None

    def shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape for a batch of `batch_size`."""
        return (batch_size, *self.sides) if self.batched else self.sides

    @property
    def open_sides(self) -> tuple[int, ...]:
        """Indices into `sides` of what is not fixed."""
        if self.smallest is None or self.largest is None:
            return ()
        both = enumerate(zip(self.smallest, self.largest, strict=True))
        return tuple(index for index, (low, high) in both if low != high)

    def random(self, batch_size: int, seed: int) -> Array:
        """Values that any network takes: floats of 0 to `peak`, whole numbers 0 and 1, or pixels."""
        generator, shape = np.random.default_rng(seed), self.shape(batch_size)
        if np.issubdtype(np.dtype(self.dtype), np.floating) or self.peak > 1:
            values = generator.random(shape, dtype=np.float32) * np.float32(self.peak)
            return np.asarray(values, self.dtype)
        return np.asarray(generator.integers(0, 2, shape), self.dtype)

    def describe(self) -> str:
        """`ids: int64 [n, 16]`, for people."""
        sides = ["n"] if self.batched else []
        sides += ["?" if i in self.open_sides else str(s) for i, s in enumerate(self.sides)]
        return f"{self.name}: {self.dtype} [{', '.join(sides)}]"


def image_input(
    image_size: tuple[int, int],
    num_channels: int = 3,
    peak: float = 1.0,
    smallest: tuple[int, int] | None = None,
    largest: tuple[int, int] | None = None,
) -> NetworkInput:
    """The only input of a network that reads images [N, channels, height, width]."""
    sides, low, high = (
        None if size is None else (num_channels, *size) for size in (image_size, smallest, largest)
    )
    assert sides is not None
    return NetworkInput(IMAGES, "float32", sides, True, "chw", peak, low, high)


def other_sizes(inputs: Sequence[NetworkInput]) -> list[tuple[NetworkInput, ...]]:
    """`inputs` with their smallest and their largest sides, and one side of each; none where all are fixed."""
    if not any(one.open_sides for one in inputs):
        return []
    smallest = tuple(replace(one, sides=one.smallest or one.sides) for one in inputs)
    largest = tuple(replace(one, sides=one.largest or one.sides) for one in inputs)
    return [smallest, largest]


def random_feed(inputs: Sequence[NetworkInput], batch_size: int, seed: int = 0) -> dict[str, Array]:
    """Values for every input; the seed of one input does not depend on the others."""
    return {one.name: one.random(batch_size, seed) for one in inputs}


def resize_feed(feed: Feed, inputs: Sequence[NetworkInput], batch_size: int) -> dict[str, Array]:
    """The first `batch_size` samples of `feed`, again from the first one where they end."""
    return {
        one.name: np.resize(feed[one.name], (batch_size, *feed[one.name].shape[1:]))
        if one.batched
        else feed[one.name]
        for one in inputs
    }


def count_samples(feed: Feed, inputs: Sequence[NetworkInput]) -> int:
    """Samples in `feed`: the length of what is batched, 1 where nothing is."""
    return next((len(feed[one.name]) for one in inputs if one.batched), 1)


def num_values(inputs: Sequence[NetworkInput]) -> int:
    """Values of one sample."""
    return sum(math.prod(one.sides) for one in inputs)


def named_inputs(module: nn.Module, feed: Feed | None, name: str) -> tuple[NetworkInput, ...]:
    """What `module` reads, where that is more than an image; none where it is one image.

    Args:
        module: a user's own.
        feed: one sample, or a batch, by the names that `forward` gives its arguments; the first axes
            that are as long as the first one's count samples. None where the user has pictures.
        name: of the network, for messages.

    Raises:
        InputError: `forward` wants other names, or several tensors and nobody says what they are.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    positional = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    required = [one.name for one in positional if one.default is one.empty]
    if feed is None:
        if len(required) > 1:
            raise InputError(
                f"{name}: reads {', '.join(required)}; give `data` with named feeds (a folder of .npz"
                " whose keys are these names)"
            )
        return ()
    names = [one.name for one in positional if one.name in feed]
    unknown = [key for key in feed if key not in names]
    missing = [key for key in required if key not in feed]
    if len(required) == 1 and missing and len(feed) == 1 and not names:
        names, unknown, missing = list(feed), [], []  # one tensor, whatever it is called
    if missing or unknown:
        raise InputError(
            f"{name}: its forward takes {', '.join(one.name for one in positional)}, and the data has"
            f" {', '.join(feed)}"
        )
    if [one.name for one in positional[: len(names)]] != names and len(names) > 1:
        raise InputError(
            f"{name}: the data leaves out {positional[0].name} in front of others; give all of"
            f" {', '.join(one.name for one in positional)}"
        )
    return tuple(_describe(key, feed[key], feed[names[0]].shape[:1]) for key in names)


def _describe(name: str, value: Array, batch: tuple[int, ...]) -> NetworkInput:
    batched = bool(value.ndim) and value.shape[:1] == batch
    dtype = "float32" if np.issubdtype(value.dtype, np.floating) else value.dtype.name
    return NetworkInput(name, dtype, value.shape[1:] if batched else value.shape, batched)
