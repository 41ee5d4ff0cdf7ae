"""The multiplier form: one weight scale in the product, and one factor per channel behind it.

    y_c = s_x s_c (q_w * q_x)_c + b_c  =  m_c (s_x s_t (q_w * q_x)_c + b_c / m_c),   m_c = s_c / s_t

The codes stay what they are. With a scale per channel TensorRT-RTX 1.7 writes a product in Float, with
one scale in Half, and the factors join the kernel that quantizes what comes out (seen in its build log,
SM80 to SM120): 29 % to 40 % fewer bytes of activations. Classic TensorRT fuses scales per channel, and
does not want this form.

s_t is a power of two, so that the weight's values and its FP16 scale are exact: the geometric mean of all
s_c, so that neither products nor factors lose bits to FP16's ends, or less where the product with its
bias could leave FP16's range.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.forms.products import QuantizedProduct, quantized_products
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, constant_at, producer
from reptrt.engines.surgery.rewire import is_any

_LARGEST = 65_000.0  # below FP16's 65 504 by what rounding may add
_SMALLEST = 2.0**-14  # the least FP16 number that has all its bits
_LEAST_STEP = 2.0**-24  # the least FP16 number
_CODE = 128


class ScaleBehindProduct(Pass):
    """Give every FP16 product with weight scales per channel one scale, and a Mul behind it.

    The Mul stands behind a ReLU where a float convolution reads that, which can then take the factors,
    and behind a Reshape that cuts channels into heads (`AddBiasBehindHeads` says why). A layer whose factors or sums FP16 cannot hold keeps its scales per channel, and so does
    one that computes in FP32, where nothing is gained.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is a layer."""
        names, moved = Names(graph), 0
        for product in list(quantized_products(graph)):
            scale = None if _is_wide(product.layer) else shared_scale(product)
            if scale is not None:
                _rewrite(graph, names, product, scale)
                moved += 1
        return moved


def shared_scale(product: QuantizedProduct) -> float | None:
    """The power of two that takes the place of the scales of `product`; None where none fits FP16."""
    live = _is_live(product)
    if not live.any():
        return None
    scales = product.scales[live]
    sums = np.abs(product.codes[live].astype(np.int64)).sum(axis=1) * _CODE * product.step
    bias = constant_at(product.layer, 2)
    offsets = 0.0 if bias is None else np.abs(bias.astype(np.float64)[live]) / scales
    exponent = round(float(np.log2(scales).mean()))
    exponent = min(exponent, math.floor(math.log2(_LARGEST / (sums + offsets).max())))
    exponent = min(exponent, math.floor(math.log2(scales.min() / _SMALLEST)))
    shared = 2.0**exponent
    fits = shared >= _SMALLEST and shared * product.step >= _LEAST_STEP
    return shared if fits and scales.max() / shared < _LARGEST else None


def _is_wide(layer: gs.Node) -> bool:
    return bool(layer.outputs[0].dtype != np.float16)


def _is_live(product: QuantizedProduct) -> np.ndarray:
    """Which channels [channels] have a weight that is not zero: the scale of others means nothing."""
    return np.asarray(product.codes.any(axis=1))


def _rewrite(graph: gs.Graph, names: Names, product: QuantizedProduct, scale: float) -> None:
    layer = product.layer
    factors = np.where(_is_live(product), product.scales / scale, 1).astype(np.float16)
    layer.inputs[1] = _one_scale(graph, names, product, scale)
    bias = constant_at(layer, 2)
    if bias is not None:
        inner = bias.astype(np.float64) / factors.astype(np.float64)
        layer.inputs[2] = names.constant(f"{layer.inputs[2].name}_inner", inner.astype(bias.dtype))
    writer = _last_before_factor(graph, layer)
    result, shape = writer.outputs[0], _shape(layer, writer)
    raw = gs.Variable(names.fresh(f"{result.name}_raw"), result.dtype, result.shape)
    writer.outputs[0] = raw
    shaped = names.constant(f"{result.name}_factors", factors.reshape(shape))
    graph.nodes.append(
        gs.Node("Mul", names.fresh(f"{layer.name}_factors"), {}, [raw, shaped], [result])
    )


def _one_scale(
    graph: gs.Graph, names: Names, product: QuantizedProduct, scale: float
) -> gs.Variable:
    """The weight in FP16, dequantized with one `scale`, as `product` reads it."""
    codes, stem = product.weight.inputs[0], product.weight.outputs[0].name
    grid = [
        names.constant(f"{stem}_scale", np.asarray(scale, np.float16)),
        names.constant(f"{stem}_zero_point", np.asarray(0, np.int8)),
    ]
    value = gs.Variable(names.fresh(f"{stem}_shared"), np.float16, codes.shape)
    name = names.fresh(f"{product.weight.name}_shared")
    graph.nodes.append(gs.Node(DEQUANTIZE, name, {}, [codes, *grid], [value]))
    for transpose in _transposes(product):
        before, value = value, gs.Variable(names.fresh(f"{stem}_turned"), np.float16)
        value.shape = transpose.outputs[0].shape
        name = names.fresh(f"{stem}_turn")
        graph.nodes.append(gs.Node("Transpose", name, dict(transpose.attrs), [before], [value]))
    return value


def _transposes(product: QuantizedProduct) -> list[gs.Node]:
    """The Transpose nodes from the DequantizeLinear of the weight down to the layer."""
    node, found = producer(product.layer.inputs[1]), []
    while node is not None and node is not product.weight:
        found += [node] * (node.op == "Transpose")
        node = producer(node.inputs[0])
    return found[::-1]


def _last_before_factor(graph: gs.Graph, layer: gs.Node) -> gs.Node:
    """`layer`, or what alone reads it and commutes with positive factors per channel."""
    reader = _only_reader(graph, layer.outputs[0])
    if reader is None:
        return layer
    if reader.op == "Relu" and any(map(_is_float_conv, reader.outputs[0].outputs)):
        return reader
    is_cut = layer.op == "MatMul" and reader.op == "Reshape"
    return reader if is_cut and _heads(reader, layer) is not None else layer


def _is_float_conv(node: gs.Node) -> bool:
    """Whether `node` is a convolution into whose weight `FoldFactors` can multiply."""
    return node.op == "Conv" and isinstance(node.inputs[1], gs.Constant)


def _heads(reshape: gs.Node, matmul: gs.Node) -> tuple[int, ...] | None:
    """The shape [..., heads, width] of the bias that alone reads `reshape`, or None."""
    readers, channels = reshape.outputs[0].outputs, (matmul.outputs[0].shape or [None])[-1]
    if len(readers) != 1 or readers[0].op != "Add":
        return None
    shapes = [
        tensor.values.shape for tensor in readers[0].inputs if isinstance(tensor, gs.Constant)
    ]
    return next((shape for shape in shapes if math.prod(shape) == channels), None)


def _only_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    readers = tensor.outputs
    return readers[0] if len(readers) == 1 and not is_any(tensor, graph.outputs) else None


def _shape(layer: gs.Node, writer: gs.Node) -> tuple[int, ...]:
    """What lets factors [channels] broadcast over what `writer` writes for `layer`."""
    if layer.op == "Conv":
        return (1, -1, *[1] * (len(layer.inputs[1].shape) - 2))
    return (writer.op == "Reshape" and _heads(writer, layer)) or (-1,)
