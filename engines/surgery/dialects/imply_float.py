"""The float network that a quantized file implies: its weights dequantized, activations not rounded."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.dialects.dynamic import is_dynamic
from reptrt.engines.surgery.leave_float import WEIGHTED
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    has_blocks,
    nodes_of,
    producer,
)
from reptrt.engines.surgery.repair.dequantize_bias import dequantize_constant
from reptrt.engines.surgery.rewire import bypass, is_any, replace_reads
from reptrt.engines.surgery.value_range import value_range

_BEFORE_RELU = frozenset({*WEIGHTED, "Add", "BatchNormalization", "Mul"})
_RELU6 = 6.0


class ImplyFloat(Pass):
    """Drop every pair of activations, and make floats of the codes of weights.

    A grid that begins at 0 does the work of a ReLU, which ONNX Runtime's quantizer takes out: it is put
    back, as ReLU6 where the grid ends at 6.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is a pair or a weight."""
        names, changed = Names(graph), 0
        for dequantize in nodes_of(graph, DEQUANTIZE):
            codes = constant_at(dequantize, 0)
            values = dequantize.outputs[0]
            if codes is not None and not has_blocks(dequantize):
                dequantize.outputs.clear()
                values.to_constant(dequantize_constant(codes, dequantize))
                changed += 1
                continue
            quantize = producer(dequantize.inputs[0])
            if quantize is None or quantize.op != QUANTIZE or has_blocks(dequantize):
                continue
            changed += _drop_pair(graph, names, quantize, dequantize)
        return changed


class UndoDynamic(Pass):
    """Let operators of dynamic quantization compute in float what they stand for."""

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is an operator."""
        names = Names(graph)
        return sum(_undo_dynamic(names, node) for node in list(graph.nodes))


def _drop_pair(graph: gs.Graph, names: Names, quantize: gs.Node, dequantize: gs.Node) -> int:
    source, values = quantize.inputs[0], dequantize.outputs[0]
    kept = _activation(names, quantize)
    if kept is not None:
        kept.inputs = [source, *kept.inputs]
        bounded = gs.Variable(names.fresh(f"{values.name}_bounded"), source.dtype, source.shape)
        kept.outputs = [bounded]
        graph.nodes.append(kept)
        source = bounded
    if not is_any(values, graph.outputs):
        replace_reads(values, source)
        return 1
    dequantize.inputs = [source]
    if not bypass(graph, dequantize):
        dequantize.op = "Identity"
    return 1


def _activation(names: Names, quantize: gs.Node) -> gs.Node | None:
    """The ReLU or ReLU6 whose work the grid of `quantize` does, without its input; None for none."""
    writer = producer(quantize.inputs[0])
    scale, zero_point = constant_at(quantize, 1), constant_at(quantize, 2)
    is_candidate = writer is not None and writer.op in _BEFORE_RELU
    if not is_candidate or scale is None or scale.size != 1:
        return None
    zero = np.array(0, np.uint8) if zero_point is None else zero_point
    if zero.dtype not in BYTE_TYPES or int(zero.item()) != np.iinfo(zero.dtype).min:
        return None
    if value_range(quantize.inputs[0])[0] >= 0:
        return None
    stem, step = quantize.outputs[0].name, float(scale.item())
    if abs(255 * step - _RELU6) > step:
        return gs.Node("Relu", names.fresh(f"{stem}_relu"))
    bounds = [
        names.constant(f"{stem}_{name}", np.asarray(bound, scale.dtype))
        for name, bound in (("low", 0.0), ("high", _RELU6))
    ]
    return gs.Node("Clip", names.fresh(f"{stem}_relu6"), inputs=bounds)


def _undo_dynamic(names: Names, node: gs.Node) -> int:
    """Let a node of dynamic quantization compute in float, on a grid of step 1 without rounding."""
    if not is_dynamic(node.op):
        return 0
    if node.op == "DynamicQuantizeLinear":
        codes, scale, zero_point = node.outputs
        node.outputs.clear()
        for reader in [reader for reader in codes.outputs if reader.op == DEQUANTIZE]:
            replace_reads(reader.outputs[0], node.inputs[0])
        replace_reads(codes, node.inputs[0])
        scale.to_constant(np.array(1, np.float32))
        zero_point.to_constant(np.array(0, np.uint8))
        return 1
    if node.op in ("MatMulInteger", "ConvInteger"):
        weight = constant_at(node, 1)
        if weight is None:
            return 0
        zero = constant_at(node, 3)
        offset = np.int32(0) if zero is None else _per_channel(zero.astype(np.int32), node.op)
        values = (weight.astype(np.int32) - offset).astype(np.float32)
        node.inputs = [node.inputs[0], names.constant(f"{node.inputs[1].name}_float", values)]
        node.op = node.op.removesuffix("Integer")
        node.outputs[0].dtype = np.float32
        return 1
    return 0


def _per_channel(zero: np.ndarray, op: str) -> np.ndarray:
    """Zero points [channels] or [] of a weight, so that they broadcast over it."""
    return zero.reshape(-1, 1, 1, 1) if op == "ConvInteger" and zero.size > 1 else zero
