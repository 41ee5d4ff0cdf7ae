"""What a layer of the multiplier form writes, on the scale of the float network's.

Such a product is too large by 1 / factor of each channel (`reptrt.engines.surgery.forms.scale_behind_product`). A
Mul puts that right, unless an FP16 convolution has taken the factors, or a ReLU comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Readers = Mapping[str, list[onnx.NodeProto]]
Constants = Mapping[str, onnx.TensorProto]

_BETWEEN = ("Cast", "Transpose")


def behind_factors(layer: onnx.NodeProto, readers: Readers, constants: Constants) -> str:
    """The tensor behind the Mul that alone reads the product of `layer`; else the product.

    A layer whose weight is float has no factors: a Mul behind it is one in front of a quantizer.
    """
    tensor = layer.output[0]
    if constants.keys() & set(layer.input[:2]):
        return str(tensor)
    found = readers.get(tensor, [])
    if layer.op_type == "MatMul" and [node.op_type for node in found] == ["Reshape"]:
        found = readers.get(found[0].output[0], [])
    is_scaled = len(found) == 1 and found[0].op_type == "Mul" and found[0].input[1] in constants
    return str(found[0].output[0] if is_scaled else tensor)


def hidden_factors(form_onnx: Path, scales_onnx: Path) -> dict[str, NDArray[np.float32]]:
    """Factors, by layer, that no Mul right behind it applies; they broadcast over what it writes.

    Args:
        form_onnx: the graph in any form.
        scales_onnx: the same with scales per channel.
    """
    model = onnx.load(form_onnx)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    shared, per_channel = _weight_scales(model), _weight_scales(onnx.load(scales_onnx))
    return {
        node.name: np.nan_to_num(per_channel[node.name] / shared[node.name], nan=1).reshape(
            _shape(node)
        )
        for node in model.graph.node
        if node.name in shared
        and shared[node.name].size < per_channel.get(node.name, np.empty(0)).size
        and behind_factors(node, readers, constants) == node.output[0]
    }


def _weight_scales(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The scales of the weight of each quantized layer, by its name.

    A channel of zeros, whose factor is 1, has NaN among the scales per channel.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    scales = {}
    for layer in model.graph.node:
        if layer.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        node = producer.get(layer.input[1])
        while node is not None and node.op_type in _BETWEEN:
            node = producer.get(node.input[0])
        if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]])
            codes = numpy_helper.to_array(constants[node.input[0]])
            scales[layer.name] = _without_dead(scale.astype(np.float32), codes, node)
    return scales


def _without_dead(
    scale: NDArray[np.float32], codes: NDArray[np.int8], dequantize: onnx.NodeProto
) -> NDArray[np.float32]:
    if scale.size == 1:
        return scale.reshape(-1)
    axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
    rows = np.moveaxis(codes, axis, 0).reshape(scale.size, -1)
    return np.where(rows.any(axis=1), scale, np.float32(np.nan))


def _shape(layer: onnx.NodeProto) -> tuple[int, ...]:
    kernel: Sequence[int] = next((a.ints for a in layer.attribute if a.name == "kernel_shape"), [])
    return (1, -1, *[1] * len(kernel)) if layer.op_type == "Conv" else (-1,)
