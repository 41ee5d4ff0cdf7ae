"""One kernel of an engine as a record: what it reads, what it writes, what it multiplies."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache, cached_property

from reptrt.engines.foreign.ranges import Count

_BITS = {
    "Float": 32, "Half": 16, "BFloat16": 16, "Int8": 8, "UInt8": 8, "FP8": 8, "Int4": 4, "FP4": 4,
    "Int32": 32, "Int64": 64, "Bool": 8,
}  # fmt: skip
_UNKNOWN_BITS = 32
_SECTOR_BYTES = 32
"""Least that a GPU moves to or from its memory: CUDA C++ Programming Guide, "Device Memory Accesses"."""

_WORDS = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32}
_PADDED = re.compile(r"channel % (\d+) == 0|/(\d+)HW|\bk[A-Z]*?HW[A-Z]?(\d+)")
_VECTORIZED = re.compile(r"\b(two|four|eight|sixteen|thirty-two) wide channel", re.IGNORECASE)
_CHANNELS = 1
_WEIGHT_KINDS = ("conv", "correlation", "gemm", "matrix", "matmul", "fusion")


@dataclass(frozen=True)
class Tensor:
    """A tensor that a kernel reads or writes.

    Attributes:
        name: as TensorRT calls it.
        dtype: as TensorRT writes it: Float, Half, BFloat16, Int8, ...
        dims: its sides, () where the source gives none. -1 is open, as in an engine that takes a
            range of batches.
        strides: in elements, one for each of `dims`, () where the source gives none.
        format: memory layout in TensorRT's words, "" where the source gives none.
    """

    name: str
    dtype: str
    dims: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    format: str = ""

    @property
    def is_open(self) -> bool:
        """Whether a side is unknown; counts then hold for a side of 1."""
        return any(side < 0 for side in self.dims)

    @property
    def elements(self) -> int:
        """How many values it holds; 0 where its shape is unknown."""
        return math.prod(abs(side) for side in self.dims) if self.dims else 0

    @cached_property
    def bytes(self) -> int:
        """What reading or writing it moves, channels that the format pads included."""
        bits = _BITS.get(self.dtype, _UNKNOWN_BITS)
        if self.strides and len(self.strides) == len(self.dims):
            return _strided_bytes(self.dims, self.strides, bits)
        multiple = _channel_multiple(self.format)
        if len(self.dims) <= _CHANNELS or multiple == 1:
            return -(-self.elements * bits // 8)
        channels = abs(self.dims[_CHANNELS])
        padded = -(-channels // multiple) * multiple
        return -(-self.elements // max(channels, 1) * padded * bits // 8)


def _strided_bytes(dims: tuple[int, ...], strides: tuple[int, ...], bits: int) -> int:
    """Bytes moved of a strided view: each contiguous run in whole sectors, gaps skipped.

    A repeated side (stride 0) is read once.
    """
    sides = sorted(
        (stride, abs(side))
        for side, stride in zip(dims, strides, strict=True)
        if abs(side) != 1 and stride != 0
    )
    run, repeats = 1, 1
    for position, (stride, side) in enumerate(sides):
        if stride > run:  # a gap, or an open stride below: what is left repeats the run
            in_sectors = -(-run * bits // (8 * _SECTOR_BYTES)) * _SECTOR_BYTES * 8 // bits
            run, repeats = min(stride, in_sectors), math.prod(one for _, one in sides[position:])
            break
        run *= side
    return -(-run * repeats * bits // 8)


@cache
def _channel_multiple(layout: str) -> int:
    """To what the channels are padded in a layout such as "Four wide channel vectorized ..."."""
    if word := _VECTORIZED.search(layout):
        return _WORDS[word[1].lower()]
    if number := _PADDED.search(layout):
        return max(1, int(next(group for group in number.groups() if group)))
    return 1


@dataclass(frozen=True)
class Product:
    """A matrix product, or a convolution as one: [rows, depth] by [depth, columns], `groups` times.

    Attributes:
        rows: output pixels of the batch, or rows of the left matrix.
        columns: output channels of a group.
        depth: input channels of a group, times the kernel's pixels.
        groups: of a convolution, or batch of a batched product.
        window: the kernel's sides, () of a plain product.
        stride: of the window, () where it has none or the source gives none.
    """

    rows: Count
    columns: Count
    depth: Count
    groups: Count = 1
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.columns * self.depth * self.groups

    @property
    def is_depthwise(self) -> bool:
        """Whether each group has one output channel: no tensor core is of use."""
        return bool(self.window) and self.groups > 1 and self.columns == 1


def convolution(
    source: tuple[int, ...],
    result: tuple[int, ...],
    window: tuple[int, ...],
    groups: int = 1,
    stride: tuple[int, ...] = (),
    transposed: bool = False,
) -> Product:
    """A convolution from `source` [N, C, ...] to `result` [N, K, ...] as a product.

    A transposed one multiplies every input pixel by the whole kernel.
    """
    pixels = result[:1] + result[2:]
    columns, depth = result[1] // groups, source[1] // groups * math.prod(window)
    if transposed:
        pixels = source[:1] + source[2:]
        columns, depth = result[1] // groups * math.prod(window), source[1] // groups
    rows = math.prod(abs(side) for side in pixels)
    return Product(rows, columns, depth, groups, window, stride)


@dataclass(frozen=True)
class Kernel:
    """One kernel of the engine and the ONNX nodes it computes.

    `weights` are the constants it reads: weights, scales and biases. `tactic` is the implementation
    TensorRT chose, empty where it does not say. `product` is what it multiplies, None where it does
    not, or the source gives no shapes.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_layers: tuple[str, ...]
    tactic: str = ""
    product: Product | None = None

    @property
    def multiplies_weights(self) -> bool:
        """Whether it is a convolution or matrix product, not the pointwise code around one."""
        return any(kind in self.kind.lower() for kind in _WEIGHT_KINDS)

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies 8-bit activations by Int8 weights, as they are.

        A `fusion` kernel may read Int8 and multiply in float: it counts only where its tactic
        names an int8 product.
        """
        if not self.multiplies_weights or not self.inputs:
            return False
        if self.inputs[0].dtype not in ("Int8", "UInt8"):
            return False
        if "fusion" in self.kind.lower() and "_i8" not in self.tactic:
            return False
        others = [tensor.dtype for tensor in (*self.inputs[1:], *self.weights)]
        return not others or "Int8" in others

    @property
    def has_shapes(self) -> bool:
        """Whether every tensor that it reads and writes has a known size."""
        tensors = (*self.inputs, *self.weights, *self.outputs)
        return all(tensor.dims and not tensor.is_open for tensor in tensors)

    @cached_property
    def bytes_in(self) -> int:
        """Activations that it reads."""
        return sum(tensor.bytes for tensor in self.inputs)

    @cached_property
    def bytes_constant(self) -> int:
        """Weights, scales and biases that it reads."""
        return sum(tensor.bytes for tensor in self.weights)

    @cached_property
    def bytes_out(self) -> int:
        """Activations that it writes."""
        return sum(tensor.bytes for tensor in self.outputs)

    @property
    def operations(self) -> int:
        """Multiplications and additions of its product; pointwise arithmetic is not counted."""
        return 0 if self.product is None else self.product.operations

    @property
    def product_dtype(self) -> str:
        """Type in which it multiplies; "" where it multiplies nothing."""
        if self.product is None:
            return ""
        if self.is_int8:
            return "Int8"
        read = [tensor.dtype for tensor in self.inputs[:1]]
        floats = [tensor.dtype for tensor in self.weights if tensor.dtype not in ("Int8", "Int32")]
        return next((one for one in (*read, *floats) if one not in ("Int8", "UInt8")), "Half")
