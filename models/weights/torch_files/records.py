"""What an inert pickle is read into: names of classes, records of objects and tensors, and plain data.

The few functions whose calls mean something in a checkpoint are written anew here; each checks that
a tensor lies inside its storage before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

_MAX_DIMENSIONS = 8
_MAX_SIZE = 1 << 48
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class CorruptFileError(ValueError):
    """A file that is damaged, truncated, or of another kind."""


class RefusedPickleError(ValueError):
    """A pickle that says more than tensors and modules need, or could run code."""


@dataclass(frozen=True)
class ForeignClass:
    """A class or function that the pickle refers to: its name, nothing else."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """Dotted path."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class ForeignObject:
    """An object of a class that is not constructed.

    Attributes:
        cls: Name of its class.
        state: Its attributes.
    """

    cls: ForeignClass
    state: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a storage; it fits in there, and is no larger.

    Attributes:
        storage: Key of the storage.
        dtype: Of the storage.
        storage_size: Elements that the pickle says the storage has.
        offset: First element.
        shape: Sizes.
        stride: Steps, in elements.
    """

    storage: str
    dtype: torch.dtype
    storage_size: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor's own elements take."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle refers to: its key, and how many elements it claims to have."""

    key: str
    dtype: torch.dtype
    size: int


def integer(value: object) -> int:
    """Let an integer through.

    Raises:
        RefusedPickleError: It is something else.
    """
    if type(value) is not int:
        raise RefusedPickleError(f"its pickle has a {type(value).__name__} where a number belongs")
    return value


def scalar_key(value: object) -> str | int | float | bytes | ForeignClass | None:
    """Let through what hashes without a walk: a deep tuple as a key would overflow the C stack.

    Raises:
        RefusedPickleError: It is something else.
    """
    if value is None or isinstance(value, str | int | float | bytes | ForeignClass):
        return value
    raise RefusedPickleError(f"its pickle uses a {type(value).__name__} as a key")


def show(value: object) -> str:
    """Return the dotted path of a class, or the type of another value, for a message."""
    path = value.path if isinstance(value, ForeignClass) else f"a {type(value).__name__}"
    return "".join(c if c.isprintable() else "?" for c in path)[:120]


def _rebuild_tensor(
    storage: object, offset: object, shape: object, stride: object, *_: object
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise RefusedPickleError(f"a tensor of its pickle lies in a {type(storage).__name__}")
    start, sizes, steps = integer(offset), _integers(shape), _integers(stride)
    fits = len(sizes) == len(steps) <= _MAX_DIMENSIONS and start >= 0
    fits = fits and all(0 <= number < _MAX_SIZE for number in [*sizes, *steps])
    if fits and 0 not in sizes:
        last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        fits = last < storage.size and math.prod(sizes) <= storage.size
    if not fits:
        raise RefusedPickleError(
            f"a tensor of shape {_shorten(sizes)} at {start} does not fit its storage of"
            f" {storage.size} elements"
        )
    return StoredTensor(storage.key, storage.dtype, storage.size, start, sizes, steps)


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list):
        raise RefusedPickleError(f"a tensor of its pickle has a {type(value).__name__} as shape")
    return tuple(integer(item) for item in value)


def _shorten(sizes: tuple[int, ...]) -> str:
    return str(list(sizes[:_MAX_DIMENSIONS]))[:80]


def _rebuild_parameter(data: object, *_: object) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise RefusedPickleError(f"a parameter of its pickle is a {type(data).__name__}")
    return data


def _rebuild_dict(pairs: Iterable[Iterable[object]] = ()) -> dict[object, object]:
    return {scalar_key(key): value for key, value in pairs}


def _rebuild_set(items: Iterable[object] = ()) -> set[object]:
    return {scalar_key(item) for item in items}


CALLS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "collections.OrderedDict": _rebuild_dict,
    "torch.Size": lambda items=(): _integers(items),
    **{
        f"{home}.{name}": _rebuild_set
        for home in ("builtins", "__builtin__")
        for name in ("set", "frozenset")
    },
}
