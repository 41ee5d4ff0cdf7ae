"""ONNX operators that onnx2torch turns into what `torch.export` cannot record, or not at all.

onnx2torch reads shapes, axes and sizes from tensors at run time. In a canonical graph
(`reptrt.models.onnx_import.canonical`) they are constants, so here they become Python values. The converters are
registered for operators of the domain `DOMAIN`, one version, whatever opset they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx2torch.node_converters.registry import add_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import nn

from reptrt.models.onnx_import.island_op import Island

DOMAIN = "reptrt"
HANDLED: set[str] = set()
"""Operators that are converted here."""

Tensor = torch.Tensor
Build = Callable[[OnnxNode, OnnxGraph], nn.Module]


class UnsupportedFormError(ValueError):
    """A form of a known operator that no converter takes; the importer names the node."""


class Operator(nn.Module):
    """A function of tensors with everything else bound; what is bound shows in the `repr`."""

    def __init__(self, function: Callable[..., Any], *bound: object) -> None:
        super().__init__()
        self.function, self.bound = function, bound

    def forward(self, *inputs: Tensor) -> Any:
        """Apply the function to the inputs, then what is bound."""
        return self.function(*inputs, *self.bound)

    def extra_repr(self) -> str:
        """Name of the function and what is bound."""
        return ", ".join([self.function.__name__, *map(repr, self.bound)])


def converts(*op_types: str, inputs: int = 1) -> Callable[[Build], Build]:
    """Register a builder of modules; only the first `inputs` inputs are tensors at run time."""

    def register(build: Build) -> Build:
        def convert(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
            mapping = OnnxMapping(node.input_values[:inputs], node.output_values)
            return OperationConverterResult(build(node, graph), mapping)

        for op_type in op_types:
            HANDLED.add(op_type)
            add_converter(operation_type=op_type, version=1, domain=DOMAIN)(convert)
        return build

    return register


def constant_input(node: OnnxNode, graph: OnnxGraph, index: int) -> Tensor | None:
    """Constant input `index` of a node, None where it is absent."""
    if index >= len(node.input_values) or not node.input_values[index]:
        return None
    tensor: Tensor = graph.initializers[node.input_values[index]].to_torch()
    return tensor


def integers(
    node: OnnxNode, graph: OnnxGraph, index: int, attribute: str = ""
) -> tuple[int, ...] | None:
    """Integers of a constant input, or of the attribute that older opsets have for it."""
    constant = constant_input(node, graph, index)
    if constant is not None:
        return tuple(int(value) for value in constant.reshape(-1).tolist())
    stated = node.attributes.get(attribute)
    return None if stated is None else tuple(int(value) for value in stated)


def number(node: OnnxNode, graph: OnnxGraph, index: int, attribute: str = "") -> float | None:
    """Number of a constant input, or of the attribute that older opsets have for it."""
    constant = constant_input(node, graph, index)
    stated = node.attributes.get(attribute) if constant is None else constant.reshape(-1)[0].item()
    return None if stated is None else float(stated)


@converts("Identity", "Dropout")
def _identity(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return nn.Identity()


@converts("Linear")
def _linear(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    weight, bias = constant_input(node, graph, 1), constant_input(node, graph, 2)
    assert weight is not None  # a Linear is made with its weight [out, in]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


class RepeatBatch(nn.Module):
    """A constant [k, ...] repeated for every image of the batch: [N * k, ...]."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, images: Tensor) -> Tensor:
        """Repeat for the batch of `images` [N, ...]."""
        value: Tensor = self.value  # type: ignore[assignment]  # a buffer
        if value.shape[0] == 1:
            return value.expand(images.shape[0], *value.shape[1:])
        return value.repeat(images.shape[0], *[1] * (value.ndim - 1))


@converts("RepeatBatch")
def _repeat_batch(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    value = constant_input(node, graph, 1)
    assert value is not None
    return RepeatBatch(value)


@converts("Island", inputs=-1)
def _island(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    model = constant_input(node, graph, len(node.input_values) - 1)
    assert model is not None
    return Island(model, str(node.attributes["outputs"]), str(node.attributes["op_types"]))


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape as ONNX does: 0 copies a dimension of `x`, -1 is what is left."""
    return x.reshape([x.shape[axis] if side == 0 else side for axis, side in enumerate(shape)])


@converts("Reshape")
def _reshape(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    shape = integers(node, graph, 1, "shape")
    if shape is None or (node.attributes.get("allowzero") and 0 in shape):
        raise UnsupportedFormError("its shape is empty")
    return Operator(reshape, shape)


def flatten(x: Tensor, axis: int) -> Tensor:
    """Flatten to two dimensions, split at `axis` >= 1; the first stays dynamic."""
    return x.reshape(-1, math.prod(x.shape[axis:])) if axis != 1 else torch.flatten(x, 1)


@converts("Flatten")
def _flatten(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axis = int(node.attributes.get("axis", 1))
    if axis < 1:
        raise UnsupportedFormError(f"axis {axis}: only axes from 1 on keep the batch")
    return Operator(flatten, axis)


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Broadcast `x` with `shape`, as ONNX does: both may be the larger one."""
    padded = x.reshape([1] * (len(shape) - x.ndim) + list(x.shape))
    sides = [1] * (padded.ndim - len(shape)) + list(shape)
    return padded.expand([-1 if side == 1 else side for side in sides])


@converts("Expand")
def _expand(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Operator(expand, integers(node, graph, 1) or ())


def tile(x: Tensor, repeats: Sequence[int]) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(*repeats)


@converts("Tile")
def _tile(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Operator(tile, integers(node, graph, 1) or ())


def squeeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Drop the axes, all of size 1."""
    return x.squeeze(tuple(axes))


@converts("Squeeze")
def _squeeze(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axes = integers(node, graph, 1, "axes")
    if axes is None:
        raise UnsupportedFormError("names no axes, so it might drop the batch")
    return Operator(squeeze, axes)


def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Insert axes of size 1 at their places in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@converts("Unsqueeze")
def _unsqueeze(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Operator(unsqueeze, integers(node, graph, 1, "axes") or ())


def slices(x: Tensor, ranges: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Cut (axis, start, end, step) ranges; a negative step counts from the turned axis."""
    for axis, start, end, step in ranges:
        if step < 0:
            side = x.shape[axis]
            first = min(start if start >= 0 else start + side, side - 1)
            last = end if end >= 0 else max(end + side, -1)
            x = x.flip(axis)
            start, end, step = side - 1 - first, side - 1 - last, -step
        x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return x


@converts("Slice")
def _slice(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    starts = integers(node, graph, 1, "starts") or ()
    ends = integers(node, graph, 2, "ends") or ()
    axes = integers(node, graph, 3, "axes") or tuple(range(len(starts)))
    steps = integers(node, graph, 4) or (1,) * len(starts)
    return Operator(slices, tuple(zip(axes, starts, ends, steps, strict=True)))


def split(x: Tensor, axis: int, sizes: Sequence[int] | None, count: int) -> tuple[Tensor, ...]:
    """Split into `sizes`, or into `count` parts of which the last may be smaller."""
    if sizes is None:
        return torch.split(x, -(-x.shape[axis] // count), axis)
    return torch.split(x, list(sizes), axis)


@converts("Split")
def _split(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    axis, count = int(node.attributes.get("axis", 0)), len(node.output_values)
    if count == 1:
        return nn.Identity()
    return Operator(split, axis, integers(node, graph, 1, "split"), count)


def pad(x: Tensor, pads: Sequence[int], mode: str, value: float) -> Tensor:
    """Pad; `pads` are begins, then ends, of the last axes."""
    half = len(pads) // 2
    pairs = [(pads[axis], pads[axis + half]) for axis in reversed(range(half))]
    fewest = 0 if mode == "constant" else max(x.ndim - 2, 1)  # other modes pad whole images
    while pairs[fewest:] and pairs[-1] == (0, 0):
        pairs.pop()
    flat = [side for pair in pairs for side in pair]
    if not any(flat):
        return x
    return F.pad(x, flat, mode, value if mode == "constant" else None)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@converts("Pad")
def _pad(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    pads = integers(node, graph, 1, "pads") or ()
    value = number(node, graph, 2, "value") or 0.0
    if constant_input(node, graph, 3) is not None:
        raise UnsupportedFormError("pads named axes only: export with opset 17")
    mode = str(node.attributes.get("mode", "constant"))
    return Operator(pad, pads, _PAD_MODES[mode], value)


@converts("Clip")
def _clip(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    low, high = number(node, graph, 1, "min"), number(node, graph, 2, "max")
    if (low, high) == (0.0, 6.0):
        return nn.ReLU6()
    if low == 0.0 and (high is None or high > 3e38):
        return nn.ReLU()
    return Operator(clip, low, high)


def clip(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """Clamp; None leaves a side open."""
    return x if low is None and high is None else x.clamp(low, high)


class Gather(nn.Module):
    """Elements of an axis at constant `indices`."""

    def __init__(self, indices: Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.shape = tuple(indices.shape)
        self.register_buffer("indices", indices.reshape(-1).long())

    def forward(self, x: Tensor) -> Tensor:
        """Gather from `x`."""
        indices: Tensor = self.indices  # type: ignore[assignment]  # a buffer
        taken = x.index_select(
            self.axis, torch.where(indices < 0, indices + x.shape[self.axis], indices)
        )
        axis = self.axis % x.ndim
        return taken.reshape(*x.shape[:axis], *self.shape, *x.shape[axis + 1 :])


@converts("Gather")
def _gather(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    indices, axis = constant_input(node, graph, 1), int(node.attributes.get("axis", 0))
    assert indices is not None
    if indices.ndim == 0:
        return Operator(torch.select, axis, int(indices))
    return Gather(indices, axis)


def power(x: Tensor, exponent: float) -> Tensor:
    """Raise to a constant power."""
    return x.sqrt() if exponent == 0.5 else x**exponent


@converts("Power")
def _power(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    exponent = number(node, graph, 1)
    assert exponent is not None
    return Operator(power, int(exponent) if exponent.is_integer() else exponent)


@converts("GreaterOrEqual", "LessOrEqual", inputs=2)
def _compare(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    return Operator(torch.ge if node.operation_type == "GreaterOrEqual" else torch.le)


@converts("ScatterND", "GatherND")
def _at_places(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    raise UnsupportedFormError("reads or writes at places that a tensor names")
