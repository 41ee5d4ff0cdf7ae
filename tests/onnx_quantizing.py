"""Put Q/DQ into a float ONNX model, as quantization-aware training with NVIDIA's tools does."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_WEIGHTED = ("Conv", "Gemm", "ConvTranspose", "MatMul")


def quantize_inputs(model: onnx.ModelProto, skips: bool = False) -> onnx.ModelProto:
    """Give each weighted layer a Q/DQ pair of its own on the activation and a DQ on the weights.

    Args:
        model: not changed.
        skips: a pair on the second input of every Add, too.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pairs = _Pairs()
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type in _WEIGHTED and node.input[1] in weights:
            copy.input[0] = pairs.activation(node.input[0])
            copy.input[1] = pairs.weight(weights[node.input[1]])
        if skips and node.op_type == "Add":
            copy.input[1] = pairs.activation(node.input[1])
        pairs.nodes.append(copy)
    kept = [tensor for tensor in graph.initializer if tensor.name not in pairs.quantized]
    quantized = helper.make_graph(
        pairs.nodes, graph.name, graph.input, graph.output, [*kept, *pairs.constants]
    )
    return helper.make_model(quantized, opset_imports=model.opset_import, ir_version=10)


class _Pairs:
    """Nodes and constants of the new graph; pairs on one tensor have one scale."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = [
            numpy_helper.from_array(np.int8(0), "zero_point"),
        ]
        self.quantized: set[str] = set()
        self._scales: dict[str, str] = {}

    def activation(self, tensor: str) -> str:
        scale = self._scales.get(tensor)
        if scale is None:
            scale = self._scales[tensor] = f"{tensor}_scale"
            value = np.float32(0.01 + 0.001 * len(self._scales))
            self.constants.append(numpy_helper.from_array(value, scale))
        stem = f"{tensor}_pair{len(self.nodes)}"
        self._add("QuantizeLinear", [tensor, scale, "zero_point"], f"{stem}_codes")
        return self._add("DequantizeLinear", [f"{stem}_codes", scale, "zero_point"], stem)

    def weight(self, tensor: onnx.TensorProto) -> str:
        self.quantized.add(tensor.name)
        codes, scale = f"{tensor.name}_codes", f"{tensor.name}_scale"
        zeros = np.zeros(tuple(tensor.dims), np.int8)
        self.constants.append(numpy_helper.from_array(zeros, codes))
        self.constants.append(numpy_helper.from_array(np.float32(0.01), scale))
        return self._add("DequantizeLinear", [codes, scale, "zero_point"], f"{tensor.name}_real")

    def _add(self, op: str, inputs: list[str], output: str) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], f"{op}_{output}"))
        return output
