"""Add the bias of a quantized linear behind the Reshape that cuts its channels into heads.

From a product of query, key and value in one, TensorRT-RTX takes each by cutting the weight; that
dequantizes it, and the product runs in float (seen in 1.7.1 on Swin, and on ViT whose attention is
not `scaled_dot_product_attention`). It leaves the weight whole where the bias is added to
[..., 3, heads, width]. Every number stays the same.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, constant_at, nodes_of, producer
from reptrt.engines.surgery.rewire import is_any


class AddBiasBehindHeads(Pass):
    """Turn MatMul -> Add -> Reshape into MatMul -> Reshape -> Add, where the weight is INT8."""

    def apply(self, graph: gs.Graph) -> int:
        """Swap in place; a site is an Add."""
        names = Names(graph)
        return sum(_swap(graph, names, add) for add in nodes_of(graph, "Add"))


def heads_behind_bias(graph: gs.Graph, add: gs.Node) -> list[int] | None:
    """The dimensions [..., heads, width] that the sum of `add` is cut into; None if it is not."""
    product, bias = _operands(add)
    biased = add.outputs[0]
    if product is None or len(biased.outputs) != 1 or is_any(biased, graph.outputs):
        return None
    return _heads(biased.outputs[0], bias)


def _swap(graph: gs.Graph, names: Names, add: gs.Node) -> bool:
    heads = heads_behind_bias(graph, add)
    product, bias = _operands(add)
    if heads is None or product is None:
        return False
    reshape = add.outputs[0].outputs[0]
    cut = reshape.outputs[0]
    unbiased = gs.Variable(names.fresh(f"{cut.name}_unbiased"), cut.dtype, cut.shape)
    reshape.inputs[0], reshape.outputs = product, [unbiased]
    add.inputs = [unbiased, names.constant(f"{cut.name}_bias", bias.reshape(heads))]
    add.outputs = [cut]
    return True


def _operands(add: gs.Node) -> tuple[gs.Tensor | None, np.ndarray]:
    """The product [..., channels] of a quantized linear and its bias [channels], or None."""
    for product, other in ((0, 1), (1, 0)):
        tensor, bias = add.inputs[product], constant_at(add, other)
        channels = (tensor.shape or [None])[-1]
        if bias is not None and bias.shape == (channels,) and _is_quantized_linear(tensor):
            return tensor, bias
    return None, np.empty(0)


def _is_quantized_linear(tensor: gs.Tensor) -> bool:
    matmul = producer(tensor)
    weight = producer(matmul.inputs[1]) if matmul is not None and matmul.op == "MatMul" else None
    while weight is not None and weight.op in {"Cast", "Transpose"}:
        weight = producer(weight.inputs[0])
    return weight is not None and weight.op == DEQUANTIZE


def _heads(reshape: gs.Node, bias: np.ndarray) -> list[int] | None:
    """The dimensions that `reshape` cuts the channels of `bias` into; None where it does not."""
    shape = constant_at(reshape, 1) if reshape.op == "Reshape" else None
    sizes = [] if shape is None else [int(size) for size in shape]
    for rank in range(2, len(sizes)):
        heads = sizes[-rank:]
        if heads[-1] < bias.size and min(heads) > 0 and math.prod(heads) == bias.size:
            return heads
    return None
