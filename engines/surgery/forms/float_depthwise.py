"""Depthwise convolutions in FP16: TensorRT-RTX pads their INT8 fourfold, and moves three times the bytes.

64 channels become 256 Int8 channels, most of them zeros that are read (`ReshConcResh` in the build log of
1.7.1). The weight keeps the values of its grid, codes times scales: that is the function for which the
calibrator chose the scales of the layers around it, and learned their rounding. What goes is the rounding
of the activation, which is noise to every calibrator.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.forms.products import is_depthwise, weight_dequantize
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    nodes_of,
    producer,
    scale_of,
)
from reptrt.engines.surgery.repair.dequantize_bias import dequantize_constant
from reptrt.engines.surgery.rewire import is_any

# Behind one of these an exporter has left no activation function to the saturation of Q.
_ACTIVATIONS = frozenset(
    {
        "Clip",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mul",
        "PRelu",
        "Relu",
        "Sigmoid",
    }
)


class FloatDepthwise(Pass):
    """Take Q/DQ off both sides of each depthwise convolution that computes in FP16.

    A Q right behind a layer may be its activation function (saturation at 0 is a ReLU's): there a Clip
    stays in the place of the pair.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is a convolution."""
        names, changed = Names(graph), 0
        for conv in nodes_of(graph, "Conv"):
            weight = weight_dequantize(conv)
            codes = None if weight is None else constant_at(weight, 0)
            if weight is None or codes is None or conv.outputs[0].dtype != np.float16:
                continue
            if is_depthwise(conv, codes.shape):
                values = dequantize_constant(codes, weight).astype(np.float16)
                conv.inputs[1] = names.constant(f"{conv.name or 'depthwise'}_weight", values)
                conv.inputs[0] = _before_pair(graph, names, conv.inputs[0])
                changed += 1
        return changed


def _before_pair(graph: gs.Graph, names: Names, tensor: gs.Tensor) -> gs.Tensor:
    """What the Q/DQ pair in front of `tensor` reads, in FP16 and clipped if need be; else `tensor`.

    What moves or joins values for this reader alone reads in front of its pairs too.
    """
    mover = producer(tensor)
    if mover is not None and _moves_for_one(graph, mover):
        for index, part in enumerate(mover.inputs if mover.op == "Concat" else mover.inputs[:1]):
            mover.inputs[index] = _before_pair(graph, names, part)
        return tensor
    dequantize = _behind_casts(tensor)
    quantize = None
    if dequantize is not None and dequantize.op == DEQUANTIZE:
        quantize = producer(dequantize.inputs[0])
    if quantize is None or quantize.op != QUANTIZE or scale_of(quantize).size != 1:
        return tensor
    source = _in_half(graph, names, quantize.inputs[0])
    if _has_activation(source):
        return source
    scale, stem = float(scale_of(quantize).item()), quantize.outputs[0].name
    bounds = [
        names.constant(f"{stem}_{side}", np.asarray(code * scale, np.float16))
        for side, code in (("low", -128), ("high", 127))
    ]
    clipped = gs.Variable(names.fresh(f"{stem}_clipped"), np.float16, source.shape)
    graph.nodes.append(
        gs.Node("Clip", names.fresh(f"{stem}_clip"), {}, [source, *bounds], [clipped])
    )
    return clipped


def _moves_for_one(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether `node` moves or joins FP16 values that one node reads."""
    result = node.outputs[0]
    is_own = len(result.outputs) == 1 and len(node.outputs) == 1
    moves = node.op == "Concat" or commutes(node)
    return moves and is_own and result.dtype == np.float16 and not is_any(result, graph.outputs)


def _behind_casts(tensor: gs.Tensor) -> gs.Node | None:
    node = producer(tensor)
    while node is not None and node.op == "Cast":
        node = producer(node.inputs[0])
    return node


def _in_half(graph: gs.Graph, names: Names, tensor: gs.Tensor) -> gs.Tensor:
    """`tensor` before it was widened to FP32, else narrowed to FP16."""
    cast = producer(tensor)
    if tensor.dtype == np.float16:
        return tensor
    if cast is not None and cast.op == "Cast" and cast.inputs[0].dtype == np.float16:
        return cast.inputs[0]
    half = gs.Variable(names.fresh(f"{tensor.name}_half"), np.float16, tensor.shape)
    name = names.fresh(f"{tensor.name}_to_half")
    graph.nodes.append(gs.Node("Cast", name, {"to": onnx.TensorProto.FLOAT16}, [tensor], [half]))
    return half


def _has_activation(tensor: gs.Tensor) -> bool:
    """Whether `tensor` is what an activation function returns, wherever its values lie now."""
    node = producer(tensor)
    while node is not None and (node.op == "Cast" or commutes(node)):
        node = producer(node.inputs[0])
    return node is not None and node.op in _ACTIVATIONS
