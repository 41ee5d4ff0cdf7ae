"""Find the products of a Q/DQ graph: convolutions and matrix products whose two sides are INT8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    constant_at,
    input_at,
    is_symmetric_int8,
    nodes_of,
    producer,
    scale_of,
)

PRODUCTS = ("Conv", "Gemm", "MatMul")
_RANK_OF_MATRIX = 2


@dataclass(frozen=True)
class QuantizedProduct:
    """A Conv, Gemm or MatMul of INT8 activations and INT8 weights.

    Attributes:
        layer: the node.
        weight: DequantizeLinear of its weight, which reaches it through Cast and Transpose.
        codes: [channels, -1], of the weight, INT8.
        scales: [channels], of the weight; one for each output channel.
        step: scale of the activation, the largest where a Concat joins several.
    """

    layer: gs.Node
    weight: gs.Node
    codes: np.ndarray
    scales: np.ndarray
    step: float


def quantized_products(graph: gs.Graph) -> Iterator[QuantizedProduct]:
    """The products of `graph` whose weight has one scale per output channel."""
    for layer in nodes_of(graph, *PRODUCTS):
        found = _product(layer)
        if found is not None:
            yield found


def weight_dequantize(layer: gs.Node) -> gs.Node | None:
    """The DequantizeLinear of constant INT8 codes behind the weight of `layer`, or None."""
    node = producer(layer.inputs[1]) if len(layer.inputs) > 1 else None
    while node is not None and node.op in {"Cast", "Transpose"}:
        node = producer(node.inputs[0])
    if node is None or node.op != DEQUANTIZE or constant_at(node, 0) is None:
        return None
    return node if node.inputs[0].dtype in BYTE_TYPES and is_symmetric_int8(node) else None


def is_depthwise(layer: gs.Node, shape: tuple[int, ...]) -> bool:
    """Whether `layer` is a Conv with a weight of `shape` that reads one channel for each it writes."""
    return layer.op == "Conv" and int(layer.attrs.get("group", 1)) > 1 and shape[1] == 1


def activation_step(tensor: gs.Tensor) -> float | None:
    """The scale of the DequantizeLinear whose values `tensor` holds, or None where it holds others."""
    node = producer(tensor)
    if node is None:
        return None
    if node.op == DEQUANTIZE:
        scale = scale_of(node)
        return float(scale.item()) if scale.size == 1 else None
    if node.op == "Concat":
        steps = [activation_step(part) for part in node.inputs]
        return None if None in steps else max(step for step in steps if step is not None)
    is_moving = node.op == "Cast" or commutes(node)
    return activation_step(node.inputs[0]) if is_moving else None


def _product(layer: gs.Node) -> QuantizedProduct | None:
    weight = weight_dequantize(layer)
    step = activation_step(layer.inputs[0])
    if weight is None or step is None or not _is_plain(layer):
        return None
    codes, scales = constant_at(weight, 0), scale_of(weight)
    assert codes is not None
    axis = int(weight.attrs.get("axis", 1)) % codes.ndim
    if scales.size == 1 or axis != _channel_axis(layer, weight, codes.ndim):
        return None
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    return QuantizedProduct(layer, weight, rows, scales.astype(np.float64), step)


def _is_plain(layer: gs.Node) -> bool:
    """Whether `layer` computes its product, and adds a constant bias per channel or none."""
    if layer.op == "Gemm" and (
        layer.attrs.get("transA", 0)
        or layer.attrs.get("alpha", 1.0) != 1
        or layer.attrs.get("beta", 1.0) != 1
    ):
        return False
    bias = constant_at(layer, 2)
    return input_at(layer, 2) is None or (bias is not None and bias.ndim == 1)


def _channel_axis(layer: gs.Node, weight: gs.Node, rank: int) -> int | None:
    """The axis of the codes along which the output channels of `layer` run."""
    if layer.op == "Conv":
        return 0 if _num_transposes(layer, weight) == 0 else None
    if rank != _RANK_OF_MATRIX:
        return None
    is_first = bool(layer.attrs.get("transB", 0)) if layer.op == "Gemm" else False
    return int((not is_first) ^ (_num_transposes(layer, weight) % 2 == 1))


def _num_transposes(layer: gs.Node, weight: gs.Node) -> int:
    node, count = producer(layer.inputs[1]), 0
    while node is not None and node is not weight:
        count += node.op == "Transpose"
        node = producer(node.inputs[0])
    return count
