"""Float biases: TensorRT refuses the int32 DequantizeLinear that ONNX Runtime writes for them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass, SurgeryError
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    along_axis,
    constant_at,
    has_blocks,
    label,
    nodes_of,
    scale_of,
    zero_point_of,
)

_WIDE_TYPES = (np.dtype(np.int32), np.dtype(np.int16), np.dtype(np.uint16))


# Operators that compute in float whatever their operands are made of.
_FLOAT_OPS = frozenset({"Add", "Div", "LayerNormalization", "Mul", "Pow", "PRelu", "Sqrt", "Sub"})


class DequantizeBias(Pass):
    """Replace constant -> DequantizeLinear by the float constant it returns, where it is no weight.

    That is: where the codes are int32 or 16-bit, or only operators read it that compute in float.
    TensorRT-RTX 1.7.1 refuses to build some of the latter, which ONNX Runtime writes for LayerNorm.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Dequantize in place; a site is a constant."""
        dequantized = 0
        for node in nodes_of(graph, DEQUANTIZE):
            codes = constant_at(node, 0)
            if codes is not None and (codes.dtype in _WIDE_TYPES or _is_no_weight(node)):
                values = dequantize_constant(codes, node)
                bias = node.outputs[0]
                node.outputs.clear()
                bias.to_constant(values)
                dequantized += 1
        return dequantized

    def ensures(self, graph: gs.Graph) -> None:
        """No DequantizeLinear reads a type wider than 8 bits."""
        for node in nodes_of(graph, DEQUANTIZE):
            dtype = node.inputs[0].dtype
            if dtype is not None and not isinstance(dtype, int) and np.dtype(dtype) in _WIDE_TYPES:
                raise SurgeryError(
                    f"{label(node)}: reads {np.dtype(dtype).name}, TensorRT takes int8; quantize "
                    "the model with 8-bit activations"
                )


def _is_no_weight(node: gs.Node) -> bool:
    readers = node.outputs[0].outputs
    is_plain = node.inputs[0].dtype in BYTE_TYPES and not has_blocks(node)
    return is_plain and bool(readers) and all(reader.op in _FLOAT_OPS for reader in readers)


def dequantize_constant(codes: np.ndarray, node: gs.Node) -> np.ndarray:
    """The values of the constant `codes` that a DequantizeLinear `node` reads, in its scale's type."""
    scale, zero_point = scale_of(node), zero_point_of(node)
    steps = along_axis(scale, node, codes.ndim).astype(np.float32)
    offset = np.int64(0) if zero_point is None else along_axis(zero_point, node, codes.ndim)
    difference = codes.astype(np.int64) - offset
    return np.asarray(difference.astype(np.float32) * steps).astype(scale.dtype)
