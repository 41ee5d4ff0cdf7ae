"""Store weights as int8: a float constant through QuantizeLinear becomes its codes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    QUANTIZE,
    along_axis,
    constant_at,
    has_blocks,
    nodes_of,
    scale_of,
    zero_point_of,
)


class QuantizeWeights(Pass):
    """Replace float constant -> QuantizeLinear by an 8-bit constant; the DequantizeLinear stays.

    The codes are those of ONNX Runtime: round half to even, then saturate. A zero scale gives
    code zero_point, which is the value 0 that its DequantizeLinear returns anyway. A constant that is only joined
    to others is no weight and keeps its pair: TensorRT-RTX 1.7 breaks off at the codes of some (RAFT's first flow).
    """

    def apply(self, graph: gs.Graph) -> int:
        """Quantize in place; a site is a weight."""
        quantized = 0
        for node in nodes_of(graph, QUANTIZE):
            weight, zero_point = constant_at(node, 0), zero_point_of(node)
            if weight is None or zero_point is None or has_blocks(node):
                continue
            if zero_point.dtype in BYTE_TYPES and not _is_joined(node):
                codes = node.outputs[0]
                node.outputs.clear()
                codes.to_constant(_quantize(weight, node, scale_of(node), zero_point))
                quantized += 1
        return quantized


def _is_joined(quantize: gs.Node) -> bool:
    """Whether all that reads the values, behind what dequantizes or casts them, is Concat."""
    pending, joins = [reader for tensor in quantize.outputs for reader in tensor.outputs], 0
    while pending:
        reader = pending.pop()
        if reader.op in (DEQUANTIZE, "Cast"):
            pending += reader.outputs[0].outputs
        elif reader.op != "Concat":
            return False
        else:
            joins += 1
    return joins > 0


def _quantize(
    weight: np.ndarray, node: gs.Node, scale: np.ndarray, zero_point: np.ndarray
) -> np.ndarray:
    """The codes of `weight` [any shape], in the type of `zero_point`."""
    steps = along_axis(scale, node, weight.ndim).astype(np.float32)
    zeros = along_axis(zero_point, node, weight.ndim).astype(np.float32)
    alive = np.where(steps == 0, np.float32(1), steps)
    ratio = np.where(steps == 0, np.float32(0), weight.astype(np.float32) / alive)
    legal = np.iinfo(zero_point.dtype)
    return np.clip(np.rint(ratio) + zeros, legal.min, legal.max).astype(zero_point.dtype)
