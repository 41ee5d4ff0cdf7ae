"""Write the zero point that ONNX implies where a Q/DQ node leaves it out.

ONNX reads a missing zero point as uint8, TensorRT as int8: stated, there is only one reading.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass, SurgeryError
from reptrt.engines.surgery.dialects.dynamic import explain_dynamic, is_dynamic
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    QUANTIZE,
    has_blocks,
    input_at,
    label,
    nodes_of,
    scale_of,
    set_grid,
)


class StateZeroPoints(Pass):
    """Give every 8-bit Q/DQ node without a zero point an explicit zero of its implied type."""

    def requires(self, graph: gs.Graph) -> None:
        """Refuse the formats that hold no QuantizeLinear at all."""
        foreign = [node for node in graph.nodes if is_operator_format(node)]
        dynamic = [node for node in foreign if is_dynamic(node.op)]
        if dynamic:
            first = dynamic[0]
            raise SurgeryError(explain_dynamic(first.op, first.name or first.outputs[0].name))
        if foreign:
            raise SurgeryError(
                f"{label(foreign[0])}: TensorRT reads only QuantizeLinear/DequantizeLinear pairs; "
                "export the model with QuantFormat.QDQ and static quantization"
            )

    def apply(self, graph: gs.Graph) -> int:
        """Add zero points in place; quantizers first, their readers take the type from them."""
        stated = 0
        names = Names(graph)
        for node in nodes_of(graph, QUANTIZE) + nodes_of(graph, DEQUANTIZE):
            if has_blocks(node) or input_at(node, 2) is not None:
                continue
            dtype = _implied_type(node)
            if dtype in BYTE_TYPES:
                scale = scale_of(node)
                set_grid(names, node, scale, np.zeros(scale.shape, dtype))
                stated += 1
        return stated


def is_operator_format(node: gs.Node | onnx.NodeProto) -> bool:
    """Whether `node` computes on codes itself, as in ONNX Runtime's QOperator format."""
    op = str(node.op_type if isinstance(node, onnx.NodeProto) else node.op)
    return op.startswith(("QLinear", "QGemm", "QAttention", "DynamicQuantize")) or "Integer" in op


def _implied_type(node: gs.Node) -> np.dtype | None:
    """The type of the codes of a Q/DQ `node` without zero point, or None if it is not NumPy's."""
    if node.op == QUANTIZE:
        onnx_type = node.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type))
    dtype = node.inputs[0].dtype
    if dtype is None:
        raise SurgeryError(
            f"{label(node)}: the type of its input is unknown; run onnx.shape_inference first or "
            "give the node a zero point"
        )
    return None if isinstance(dtype, int) else np.dtype(dtype)
