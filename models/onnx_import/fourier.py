"""A discrete Fourier transform, which no TensorRT has, as a product with a constant matrix.

The matrix is what ONNX Runtime makes of each unit vector, so every form of the operator is one: of real or
complex values, inverse, one-sided, cut off or filled up to another length. It stands on the left, where no
quantizer does: a spectrum is far wider than INT8 is, by its mean alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.models.onnx_import.values import Array, run_operator
from reptrt.models.onnx_import.writer import Writer

_AXIS_IS_AN_INPUT = 20  # from this opset on
_MAX_SIDE = 4096  # of the matrix; 64 MiB


def write_transform(writer: Writer, node: gs.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Write a DFT of a known length, not along images, as a product; return whether it was done."""
    before, after = (shapes.get(t.name, ()) for t in (node.inputs[0], node.outputs[0]))
    axis = _axis(node, writer.opset)
    if len(before) != len(after) or axis is None or not before or not all(before):
        return False
    axis %= len(before)
    length = _length(node)
    if not 0 < axis < len(before) - 1 or length == 0:
        return False
    if max(before[axis] * before[-1], after[axis] * after[-1]) > _MAX_SIDE:
        return False
    matrix = _matrix(node, writer.opset, before[axis], before[-1], length)
    ahead, behind = math.prod(before[1:axis]), math.prod(before[axis + 1 : -1])
    apart = writer.reshape(node.inputs[0], ahead, before[axis], behind, before[-1])
    joined = writer.add("Transpose", apart, perm=[0, 1, 2, 4, 3])
    columns = writer.reshape(joined, ahead, before[axis] * before[-1], behind)
    product = writer.add("MatMul", writer.constant(matrix), columns)
    split = writer.reshape(product, ahead, after[axis], after[-1], behind)
    turned = writer.add("Transpose", split, perm=[0, 1, 2, 4, 3])
    writer.become("Reshape", turned, writer.constant(np.array([-1, *after[1:]], np.int64)))
    return True


def _axis(node: gs.Node, opset: int) -> int | None:
    """None where it is computed."""
    if opset < _AXIS_IS_AN_INPUT:
        return int(node.attrs.get("axis", 1))
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None or not given.name:
        return -2
    return int(given.values) if isinstance(given, gs.Constant) else None


def _length(node: gs.Node) -> int | None:
    """Samples that are transformed; None for all that there are, 0 where it is computed."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None or not given.name:
        return None
    return int(given.values) if isinstance(given, gs.Constant) else 0


def _matrix(node: gs.Node, opset: int, side: int, parts: int, length: int | None) -> Array:
    """[bins x parts, side x parts]: what a DFT makes of each unit vector of `side` samples of `parts` parts."""
    units = np.eye(side * parts, dtype=np.float32).reshape(-1, side, parts)
    attrs = {key: value for key, value in node.attrs.items() if key != "axis"}
    if opset < _AXIS_IS_AN_INPUT:
        attrs["axis"] = 1
    shown = None if length is None else np.array(length, np.int64)
    found = run_operator("DFT", {"x": units, "length": shown}, attrs, opset)
    return np.ascontiguousarray(found.reshape(len(units), -1).T, np.float32)
