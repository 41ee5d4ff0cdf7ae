"""The convolutions and matrix products of an ONNX graph, and whether their Q/DQ nodes make them INT8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from reptrt.engines.commuting import CARRIED_OPS

_Scales = dict[str, frozenset[bytes]]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INSIDE_ATTENTION = frozenset(
    (
        *("Add", "Cast", "DequantizeLinear", "Div", "Dropout", "Identity", "Mul"),
        *("QuantizeLinear", "Reshape", "Sub"),
    )
)


@dataclass(frozen=True)
class WeightedLayer:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    `name` is the one TensorRT reports: the node's, or `node_of_<output>` where it has none.
    """

    name: str
    op: str
    activation_quantized: bool
    weight_quantized: bool
    obstacle: str = ""
    depthwise: bool = False

    @property
    def quantized(self) -> bool:
        """Whether both its operands come from a DequantizeLinear."""
        return self.activation_quantized and self.weight_quantized


def read_weighted_layers(onnx_path: Path) -> tuple[WeightedLayer, ...]:
    """Return the weighted layers of the main graph, in node order."""
    return weighted_layers(onnx.load(str(onnx_path), load_external_data=False).graph)


def weighted_layers(graph: onnx.GraphProto) -> tuple[WeightedLayer, ...]:
    """As `read_weighted_layers`, of a graph that is in memory."""
    return tuple(_QdqGraph(graph).weighted_layers())


def attentions(graph: onnx.GraphProto) -> tuple[frozenset[str], ...]:
    """Return each attention as the names of its product Q Kᵀ, its Softmax and its product with V."""
    return tuple(_QdqGraph(graph).attentions())


class _QdqGraph:
    """Producers and constants of one graph; nodes are in topological order, as ONNX demands."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.constants = set(self.initializers)
        for node in graph.node:
            inputs = [name for name in node.input if name]
            if node.op_type == "Constant" or (inputs and self.constants.issuperset(inputs)):
                self.constants.update(node.output)
        self._dequantize = _behind(graph)
        self._activation_scales = _scales(graph, self.initializers)

    def weighted_layers(self) -> Iterator[WeightedLayer]:
        for node in self.graph.node:
            if node.op_type not in _WEIGHTED:
                continue
            constant = [name in self.constants for name in node.input[:2]]
            if sum(constant) != 1:  # attention products have no weight; the others are folded
                continue
            weight, activation = node.input[constant.index(True)], node.input[constant.index(False)]
            yield WeightedLayer(
                name=_name(node),
                op=node.op_type,
                activation_quantized=self._dequantize.get(activation) is not None,
                weight_quantized=self._dequantize.get(weight) is not None,
                obstacle=self._obstacle(node, activation, weight),
                depthwise=self._is_depthwise(node, weight),
            )

    def attentions(self) -> Iterator[frozenset[str]]:
        for node in self.graph.node:
            if node.op_type != "MatMul" or not self.constants.isdisjoint(node.input):
                continue
            softmax = self._maker(node.input[0], "Softmax")
            scores = None if softmax is None else self._maker(softmax.input[0], "MatMul")
            if softmax is not None and scores is not None:
                yield frozenset(map(_name, (scores, softmax, node)))

    def _maker(self, tensor: str, op: str) -> onnx.NodeProto | None:
        """Return the node `op` whose result reaches `tensor` scaled, biased or masked, or None."""
        node = self.producer.get(tensor)
        while node is not None and node.op_type != op:
            if node.op_type not in _INSIDE_ATTENTION:
                return None
            computed = (name for name in node.input if name not in self.constants)
            node = self.producer.get(next(computed, ""))
        return node

    def _is_depthwise(self, node: onnx.NodeProto, weight: str) -> bool:
        """Whether `node` is a convolution that reads one channel for each it writes."""
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        maker = self.producer.get(weight)
        while maker is not None and maker.input:
            weight = maker.input[0]
            maker = self.producer.get(weight)
        constant = self.initializers.get(weight)
        shape = [] if constant is None else list(constant.dims)
        return node.op_type == "Conv" and groups > 1 and shape[1:2] == [1]

    def _obstacle(self, node: onnx.NodeProto, activation: str, weight: str) -> str:
        """Return why the compiler may have to multiply in float although both sides are Q/DQ."""
        if len(self._activation_scales.get(activation, ())) > 1:
            return "its activation is a Concat of different scales: put one Q/DQ behind the Concat"
        dequantize = self._skip_casts(weight)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return ""
        axis, legal = _axis(dequantize), _output_axis(node)
        scale = self.initializers.get(dequantize.input[1])
        if scale is None or not list(scale.dims) or scale.dims[0] == 1 or axis == legal:
            return ""
        return (
            f"its weight scale runs along axis {axis}: TensorRT wants {legal}, the output channels"
        )

    def _skip_casts(self, tensor: str) -> onnx.NodeProto | None:
        node = self.producer.get(tensor)
        while node is not None and node.op_type == "Cast":
            node = self.producer.get(node.input[0])
        return node


def _behind(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto | None]:
    """The DequantizeLinear that reaches a tensor on every path, for each that a node makes."""
    found: dict[str, onnx.NodeProto | None] = {}
    for node in graph.node:
        reached: onnx.NodeProto | None = None
        if node.op_type == "DequantizeLinear":
            reached = node
        elif node.op_type == "Concat":
            parts = [found.get(name) for name in node.input]
            reached = parts[0] if parts and all(parts) else None
        elif node.op_type in CARRIED_OPS and node.input:
            reached = found.get(node.input[0])
        found.update(dict.fromkeys(node.output, reached))
    return found


def _scales(graph: onnx.GraphProto, initializers: Mapping[str, onnx.TensorProto]) -> _Scales:
    """Constant scales that reach each tensor through one or more Concats; two where there are more."""
    found: _Scales = {}
    for node in graph.node:
        reached: frozenset[bytes] = frozenset()
        if node.op_type == "DequantizeLinear":
            scale = initializers.get(node.input[1])
            if scale is not None and not scale.external_data:  # else not loaded
                reached = frozenset([numpy_helper.to_array(scale).tobytes()])
        elif node.op_type == "Concat":
            parts = set[bytes]().union(*(found.get(name, frozenset()) for name in node.input))
            reached = frozenset(sorted(parts)[:2])
        elif node.op_type in CARRIED_OPS and node.input:
            reached = found.get(node.input[0], frozenset())
        found.update(dict.fromkeys(node.output, reached))
    return found


def _name(node: onnx.NodeProto) -> str:
    """Return the name that TensorRT reports."""
    return node.name or f"node_of_{node.output[0]}"


def _axis(dequantize: onnx.NodeProto) -> int:
    return next((a.i for a in dequantize.attribute if a.name == "axis"), 1)


def _output_axis(node: onnx.NodeProto) -> int:
    """Return the axis of output channels in the weight of `node`, as Q/DQ counts it."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1
