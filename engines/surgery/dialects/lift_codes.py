"""Operators that move or clip codes, between QuantizeLinear and DequantizeLinear, as float ones.

TensorRT fuses a layer with the pairs that stand at it; what stands between Q and DQ hides them.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    QUANTIZE,
    constant_at,
    input_at,
    producer,
    same_grid,
    scale_of,
    zero_point_of,
)


class LiftCodes(Pass):
    """Move each QuantizeLinear behind operators that move, join or clip its codes: every code stays.

    Q -> MaxPool -> Reshape -> DQ becomes MaxPool -> Reshape -> Q -> DQ. Rounding to a grid and taking
    the largest, or one of two bounds on the grid, may be done in either order.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Lift in place; a site is an operator."""
        names, lifted = Names(graph), 0
        for node in list(graph.nodes):
            values = _float_inputs(names, node)
            if values is None:
                continue
            quantize = _quantizer(node.inputs[0])
            assert quantize is not None
            node.inputs = values
            if node.op == "Relu":
                node.op = "Clip"
            node.outputs = [self._requantize(graph, names, quantize, t) for t in node.outputs]
            lifted += 1
        return lifted

    def _requantize(
        self, graph: gs.Graph, names: Names, quantize: gs.Node, codes: gs.Tensor
    ) -> gs.Tensor:
        """What `node` writes in the place of `codes`, which a QuantizeLinear makes of it."""
        dtype = quantize.inputs[0].dtype or scale_of(quantize).dtype
        values = gs.Variable(names.fresh(f"{codes.name}_float"), dtype, codes.shape)
        codes.dtype = quantize.outputs[0].dtype
        inputs = [values, *quantize.inputs[1:]]
        name = names.fresh(f"{codes.name}_quantize")
        graph.nodes.append(gs.Node(QUANTIZE, name, dict(quantize.attrs), inputs, [codes]))
        return values


def _quantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The QuantizeLinear with one constant 8-bit grid that writes `tensor`, or None."""
    node = producer(tensor)
    if node is None or node.op != QUANTIZE:
        return None
    scale, zero_point = constant_at(node, 1), constant_at(node, 2)
    is_byte = zero_point is not None and zero_point.dtype in BYTE_TYPES
    return node if is_byte and scale is not None and scale.size == 1 else None


def _float_inputs(names: Names, node: gs.Node) -> list[gs.Tensor] | None:
    """What `node` reads once it works on values instead of codes; None where it must not."""
    quantize = _quantizer(node.inputs[0]) if node.inputs else None
    if quantize is None:
        return None
    source = quantize.inputs[0]
    if commutes(node):
        return [source, *node.inputs[1:]]
    if node.op == "Concat":
        writers = [_quantizer(tensor) for tensor in node.inputs]
        if all(writer is not None and same_grid(writer, quantize) for writer in writers):
            return [writer.inputs[0] for writer in writers if writer is not None]
        return None
    bounds = _bounds(node, quantize)
    if bounds is None:
        return None
    stem, dtype = node.outputs[0].name, scale_of(quantize).dtype
    limits = [
        names.constant(f"{stem}_{name}", np.asarray(bound, dtype))
        for name, bound in zip(("low", "high"), bounds, strict=True)
    ]
    return [source, *limits]


def _bounds(node: gs.Node, quantize: gs.Node) -> tuple[float, float] | None:
    """The values to which a Clip or Relu of codes bounds; None for other nodes."""
    zero_point = zero_point_of(quantize)
    assert zero_point is not None
    legal = np.iinfo(zero_point.dtype)
    low, high = 0.0, float(legal.max)
    if node.op == "Clip":
        codes = [constant_at(node, index) for index in (1, 2)]
        missing = [
            input_at(node, index) is not None and c is None for index, c in enumerate(codes, 1)
        ]
        if any(missing):
            return None
        low = float(legal.min if codes[0] is None else codes[0].item())
        high = float(legal.max if codes[1] is None else codes[1].item())
    elif node.op != "Relu":
        return None
    zero, step = int(zero_point.item()), float(scale_of(quantize).item())
    return (low - zero) * step, (high - zero) * step
