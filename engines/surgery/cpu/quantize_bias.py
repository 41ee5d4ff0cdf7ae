"""For ONNX Runtime on a CPU: biases as int32 codes, as its integer kernels hold them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, constant_at, nodes_of, producer, scale_of

_LARGEST = 2**31 - 1


class QuantizeBias(Pass):
    """Put the bias of a quantized convolution or Gemm behind an int32 DequantizeLinear.

    Its step is that of the accumulator, input scale x weight scale. A bias that `reptrt.calibrators.quantized.biases`
    rounded comes through unchanged; another one moves by half a step at most.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Quantize in place; a site is a layer."""
        names = Names(graph)
        return sum(_quantize_bias(graph, names, node) for node in nodes_of(graph, "Conv", "Gemm"))


def _quantize_bias(graph: gs.Graph, names: Names, layer: gs.Node) -> bool:
    bias = constant_at(layer, 2)
    sources = [producer(tensor) for tensor in layer.inputs[:2]]
    if bias is None or any(source is None or source.op != DEQUANTIZE for source in sources):
        return False
    step = np.float64(1)
    for source in sources:
        step = step * scale_of(source).astype(np.float64)
    step = np.broadcast_to(step.reshape(-1), bias.shape)
    codes = np.rint(bias / step)
    if bias.ndim != 1 or np.abs(codes).max(initial=0) > _LARGEST:
        return False
    stem = layer.inputs[2].name
    dequantized = gs.Variable(names.fresh(f"{stem}_dequantized"), bias.dtype, bias.shape)
    inputs = [
        names.constant(f"{stem}_codes", codes.astype(np.int32)),
        names.constant(f"{stem}_scale", step.astype(bias.dtype)),
        names.constant(f"{stem}_zero_point", np.zeros(bias.shape, np.int32)),
    ]
    name = names.fresh(f"{stem}_dequantize")
    graph.nodes.append(
        gs.Node(DEQUANTIZE, name, attrs={"axis": 0}, inputs=inputs, outputs=[dequantized])
    )
    layer.inputs[2] = dequantized
    return True
