"""Float biases: TensorRT refuses the int32 DequantizeLinear that ONNX Runtime writes for them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from pipeline.surgery.base import Pass, SurgeryError
from pipeline.surgery.qdq import (
    DEQUANTIZE,
    along_axis,
    constant_at,
    label,
    nodes_of,
    scale_of,
    zero_point_of,
)

_WIDE_TYPES = (np.dtype(np.int32), np.dtype(np.int16), np.dtype(np.uint16))


class DequantizeBias(Pass):
    """Replace constant int32 (or 16-bit) -> DequantizeLinear by the float constant it returns."""

    def apply(self, graph: gs.Graph) -> int:
        """Dequantize in place; a site is a constant."""
        dequantized = 0
        for node in nodes_of(graph, DEQUANTIZE):
            codes = constant_at(node, 0)
            if codes is not None and codes.dtype in _WIDE_TYPES:
                values = _dequantize(codes, node)
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


def _dequantize(codes: np.ndarray, node: gs.Node) -> np.ndarray:
    scale, zero_point = scale_of(node), zero_point_of(node)
    steps = along_axis(scale, node, codes.ndim).astype(np.float32)
    offset = np.int64(0) if zero_point is None else along_axis(zero_point, node, codes.ndim)
    difference = codes.astype(np.int64) - offset
    return np.asarray(difference.astype(np.float32) * steps).astype(scale.dtype)
