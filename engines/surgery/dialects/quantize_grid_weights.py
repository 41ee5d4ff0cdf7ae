"""Weights that an exporter folded to floats, although every value lies on a grid of 8 bits."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, constant_at, nodes_of, producer

_LARGEST = 127
_FIRST_WITH_AXIS = 13
_ON_GRID = 1e-3
"""Distance from a code, in steps: FP32 leaves 127 * 2**-23, random values a quarter."""


class QuantizeGridWeights(Pass):
    """Give a layer whose activation is quantized the DequantizeLinear of its weight back.

    That is where each output channel's values are whole multiples of one step, 127 at most: the values
    of fake quantization that was folded. They stay what they were.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Quantize in place; a site is a weight."""
        if graph.opset < _FIRST_WITH_AXIS:
            return 0
        names, done = Names(graph), 0
        for node in nodes_of(graph, "Conv", "Gemm", "MatMul"):
            weight = constant_at(node, 1)
            if weight is None or weight.ndim < 2 or weight.dtype.kind != "f":
                continue
            axis = _channel_axis(node, weight.ndim)
            steps = _steps(weight, axis) if _reads_pair(node) else None
            if steps is None:
                continue
            across = np.expand_dims(steps, [i for i in range(weight.ndim) if i != axis])
            codes = np.rint(weight / across).astype(np.int8)
            stem = node.inputs[1].name
            values = gs.Variable(names.fresh(f"{stem}_values"), weight.dtype, weight.shape)
            inputs = [
                names.constant(f"{stem}_codes", codes),
                names.constant(f"{stem}_scale", steps.astype(weight.dtype)),
                names.constant(f"{stem}_zero_point", np.zeros(steps.shape, np.int8)),
            ]
            name = names.fresh(f"{stem}_dequantize")
            graph.nodes.append(gs.Node(DEQUANTIZE, name, {"axis": axis}, inputs, [values]))
            node.inputs[1] = values
            done += 1
        return done


def _channel_axis(node: gs.Node, rank: int) -> int:
    is_first = node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0))
    return 0 if is_first else rank - 1


def _reads_pair(node: gs.Node) -> bool:
    """Whether the activation that `node` reads comes from a DequantizeLinear."""
    writer = producer(node.inputs[0])
    while writer is not None and (commutes(writer) or writer.op == "Cast"):
        writer = producer(writer.inputs[0])
    return writer is not None and writer.op == DEQUANTIZE


def _steps(weight: NDArray[np.floating], axis: int) -> NDArray[np.float64] | None:
    """The step of each channel's grid, float64 [channels]; None where a channel lies on none."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    found = np.ones(len(rows))
    for index, row in enumerate(rows):
        values = np.unique(np.abs(row))
        values = values[values > 0]
        if len(values) > _LARGEST or not np.isfinite(values).all():
            return None
        if len(values):
            codes = np.arange(1, _LARGEST + 1)[:, None] * (values / values[-1])
            off = np.abs(codes - np.rint(codes)).max(axis=1)
            if off.min() > _ON_GRID:
                return None
            found[index] = values[-1] / (1 + int(np.argmax(off <= _ON_GRID)))
    return found
