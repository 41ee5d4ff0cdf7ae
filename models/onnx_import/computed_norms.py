"""A normalization whose parameters are no constants, as arithmetic.

    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

Adaptive normalization (AdaIN, https://arxiv.org/abs/1703.06868) computes gamma and beta from an image; where it is
written as a BatchNormalization of [1, N * channels, ...], its parameters are repeated for every image. Such a
BatchNormalization in training mode has the statistics of each image, as one axis holds images and channels.
TensorRT has these layers with constant parameters only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.models.onnx_import.writer import Writer

_EPSILON = 1e-5


def write_norm(writer: Writer, node: gs.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Write a BatchNormalization or InstanceNormalization so, where that is needed and the same.

    Args:
        writer: of `node`.
        node: that is changed.
        shapes: of tensors, for one image.

    Returns:
        Whether it was.
    """
    source, gamma, beta, *statistics = node.inputs
    sides = shapes.get(source.name, ())
    measures = node.op == "InstanceNormalization" or bool(node.attrs.get("training_mode"))
    is_batch = node.op == "BatchNormalization" and measures
    if len(sides) < 3 or (is_batch and sides[0] != 1):  # those of several images
        return False
    if not is_batch and all(isinstance(one, gs.Constant) for one in node.inputs[1:]):
        return False
    if any(tensor.outputs for tensor in node.outputs[1:]):
        return False

    def column(tensor: gs.Tensor) -> gs.Tensor:
        shape = [1, -1, *[1] * (len(sides) - 2)]
        if isinstance(tensor, gs.Constant):
            return writer.constant(tensor.values.reshape(shape))
        return writer.add("Reshape", tensor, writer.constant(np.array(shape, np.int64)))

    mean = writer.add("GlobalAveragePool", source) if measures else column(statistics[0])
    centred = writer.add("Sub", source, mean)
    if measures:
        variance = writer.add("GlobalAveragePool", writer.add("Mul", centred, centred))
    else:
        variance = column(statistics[1])
    epsilon = writer.constant(np.array(node.attrs.get("epsilon", _EPSILON), np.float32))
    root = writer.add("Sqrt", writer.add("Add", variance, epsilon))
    scaled = writer.add("Mul", centred, writer.add("Div", column(gamma), root))
    writer.become("Add", scaled, column(beta))
    node.outputs = node.outputs[:1]
    return True
