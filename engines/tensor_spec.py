"""What an input or output of a network is: name, type and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """An input or output of the network; `shape` has -1 where a dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether the first dimension is left open."""
        return self.shape[:1] == (-1,)


@dataclass(frozen=True)
class TensorSpec:
    """What a model wants at one input; a dynamic dimension is -1."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine; a dynamic dimension is -1."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_input: bool
