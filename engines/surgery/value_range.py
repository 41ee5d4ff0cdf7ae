"""What interval the values of a tensor must lie in, read off the operators above it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    input_at,
    is_symmetric_int8,
    producer,
    scale_of,
)

_UNBOUNDED = (-math.inf, math.inf)
_ACTIVATIONS = {"Relu": (0.0, math.inf), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)}


def value_range(tensor: gs.Tensor) -> tuple[float, float]:
    """The (lowest, highest) value that `tensor` can hold; infinite where nothing is known.

    Q/DQ pairs are walked through: their rounding adds at most half a step at either end.
    """
    known: dict[int, tuple[float, float]] = {}
    pending = [tensor]
    while pending:
        here = pending[-1]
        waiting = [source for source in _sources(here) if id(source) not in known]
        if waiting:
            pending += waiting
        else:
            known[id(here)] = _range_of(here, [known[id(source)] for source in _sources(here)])
            pending.pop()
    return known[id(tensor)]


def _sources(tensor: gs.Tensor) -> list[gs.Tensor]:
    """The tensors whose ranges decide that of `tensor`."""
    node = producer(tensor)
    if node is None:
        return []
    if node.op == "Concat":
        return list(node.inputs)
    passes = commutes(node) or node.op in {DEQUANTIZE, QUANTIZE, "Cast"}
    return [node.inputs[0]] if passes else []


def _range_of(tensor: gs.Tensor, ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range of `tensor`, made of those of its `_sources`."""
    node = producer(tensor)
    if node is None:
        return _UNBOUNDED
    if node.op in _ACTIVATIONS:
        return _ACTIVATIONS[node.op]
    if node.op == "Clip":
        low, high = clip_bounds(node)
        return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
    if not ranges:
        return _UNBOUNDED
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if node.op == DEQUANTIZE:
        grid_low, grid_high = _grid_range(node)
        return max(low, grid_low), min(high, grid_high)
    return low, high


def _grid_range(dequantize: gs.Node) -> tuple[float, float]:
    """What a symmetric int8 per-tensor grid can return."""
    scale = scale_of(dequantize)
    if scale.size != 1 or not is_symmetric_int8(dequantize):
        return _UNBOUNDED
    return -128 * float(scale.item()), 127 * float(scale.item())


def clip_bounds(node: gs.Node) -> tuple[float, float]:
    """The bounds of a Clip node, infinite where absent; NaN where computed at run time."""
    low = _bound(node, 1, float(node.attrs.get("min", -math.inf)))
    return low, _bound(node, 2, float(node.attrs.get("max", math.inf)))


def _bound(node: gs.Node, index: int, absent: float) -> float:
    value = constant_at(node, index)
    if value is not None:
        return float(value.item())
    return absent if input_at(node, index) is None else math.nan
