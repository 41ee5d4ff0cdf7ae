"""Where the tail of a network begins (`reptrt.models.onnx_import.tail`)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.models.onnx_import.pieces import (
    is_sized_by_pixels,
    makers,
    pixel_tensors,
    tensors_read,
)

DECIDING = {
    "TopK", "ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not",
    "And", "Or", "Xor", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Scatter",
    "OneHot", "Hardmax", "Round", "RoiAlign", "MaxRoiPool",
}  # fmt: skip
"""Operators that sort, select or decide."""

_RECURRENT = {"LSTM", "GRU", "RNN"}
_WEIGHTED = {"Conv", "ConvTranspose", "DeformConv", "FusedConv"}
_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul"}
_LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


def find_tail(graph: gs.Graph, unknown: Collection[str]) -> set[str]:
    """Names of the nodes of the tail; what follows one of them is in it too.

    Args:
        graph: canonical, in order.
        unknown: nodes that are not imported.
    """
    behind, pixels = _behind_all_layers(graph), pixel_tensors(graph)
    outputs = {tensor.name for tensor in graph.outputs}
    starts = {
        node.name
        for node in graph.nodes
        if is_sized_by_pixels(node, pixels)
        or any(t.name in outputs and t.name not in pixels for t in node.outputs)
        or (node.name in behind and (_decides(node) or node.name in unknown))
    }
    made_by = makers(graph)
    found: set[str] = set()
    for node in graph.nodes:
        sources = (made_by[t.name].name for t in tensors_read(node) if t.name in made_by)
        if node.name in starts or any(source in found for source in sources):
            found.add(node.name)
    return found


def _decides(node: gs.Node) -> bool:
    if node.op == "Cast":
        return node.attrs.get("to") not in (onnx.TensorProto.FLOAT, np.float32, np.dtype("float32"))
    return node.op in DECIDING


def is_layer(node: gs.Node) -> bool:
    """Whether `node` multiplies by weights; the integral of a distribution (DFL) is no layer."""
    if node.op in _RECURRENT:
        return True
    constant = any(isinstance(tensor, gs.Constant) for tensor in node.inputs[:2])
    return (node.op in _PRODUCTS and constant) or (node.op in _WEIGHTED and not _is_integral(node))


def _is_integral(node: gs.Node) -> bool:
    source = node.inputs[0]
    while source.inputs and source.inputs[0].op in _LAYOUT:
        source = source.inputs[0].inputs[0]
    return bool(source.inputs) and source.inputs[0].op == "Softmax"


def _behind_all_layers(graph: gs.Graph) -> set[str]:
    """Nodes behind which no layer comes, and in front of which one does."""
    made_by = makers(graph)
    after: set[str] = set()  # nodes that read from a layer, on whatever way
    for node in graph.nodes:
        sources = [made_by[t.name] for t in tensors_read(node) if t.name in made_by]
        if any(is_layer(source) or source.name in after for source in sources):
            after.add(node.name)
    before: set[str] = set()  # nodes on whose way to the outputs a layer lies
    for node in reversed(graph.nodes):
        if is_layer(node) or node.name in before:
            before.update(made_by[t.name].name for t in tensors_read(node) if t.name in made_by)
    return {n.name for n in graph.nodes if n.name in after - before and not is_layer(n)}
