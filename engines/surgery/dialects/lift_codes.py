"""Operators that move or clip codes, between QuantizeLinear and DequantizeLinear, as float ones.

TensorRT fuses a layer with the pairs that stand at it; what stands between Q and DQ hides them.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import CARRIED_OPS, commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    input_at,
    producer,
    same_grid,
    scale_of,
    zero_point_of,
)
from reptrt.engines.surgery.rewire import is_any, replace_reads

_RANKING = ("ArgMax", "ArgMin")
_MOVING_PADS = ("reflect", "edge", "wrap")


class LiftCodes(Pass):
    """Let operators that move, join or clip codes work on the values of those codes.

    Q -> MaxPool -> Reshape -> DQ becomes Q -> DQ -> MaxPool -> Reshape, across which compilers carry the
    pair; behind a Resize or a reflecting Pad, across which they do not, it stands again. A Clip goes before
    the pair: rounding to a grid and taking one of two bounds on the grid may be done in either order. Every
    code stays, but for those between which a Resize interpolates.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Lift in place; a site is an operator."""
        lifting = _Lifting(graph)
        return sum(lifting.lift(node) for node in list(graph.nodes))


class _Lifting:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph, self.names = graph, Names(graph)
        self._on_grid: set[int] = set()  # added here: what they quantize are values of codes

    def lift(self, node: gs.Node) -> bool:
        """Let `node` work on values, if it works on codes of one grid."""
        quantize = _quantizer(node.inputs[0]) if node.inputs else None
        if quantize is None:
            return False
        if node.op in _RANKING:
            node.inputs = [self._values(quantize)]
            return True
        moves = commutes(node) or (node.op == "Pad" and node.attrs.get("mode") in _MOVING_PADS)
        if node.op == "Resize" and not moves:  # between codes; who mixes them rounds again
            node.inputs[0] = self._values(quantize)
        elif node.op == "Pad" and not moves:
            if not self._pad_values(node, quantize):
                return False
        elif moves or node.op == "Concat":
            count = 1 if moves else len(node.inputs)
            writers = [_quantizer(tensor) for tensor in node.inputs[:count]]
            if not all(one is not None and same_grid(one, quantize) for one in writers):
                return False
            values = [self._values(one) for one in writers if one is not None]
            node.inputs = [*values, *node.inputs[count:]]
        else:
            bounds = _bounds(node, quantize)
            if bounds is None:
                return False
            stem, dtype = node.outputs[0].name, scale_of(quantize).dtype
            limits = [
                self.names.constant(f"{stem}_{name}", np.asarray(bound, dtype))
                for name, bound in zip(("low", "high"), bounds, strict=True)
            ]
            node.op, node.inputs = "Clip", [quantize.inputs[0], *limits]
        is_moving_pad = node.op == "Pad" and moves
        is_on_grid = node.op == "Concat" or (node.op in CARRIED_OPS and not is_moving_pad)
        node.outputs = [self._requantize(quantize, one, is_on_grid) for one in node.outputs]
        return True

    def _pad_values(self, node: gs.Node, quantize: gs.Node) -> bool:
        """Let a Pad by a constant code pad the values of codes by its value; False if it is not known."""
        code, zero_point = constant_at(node, 2), zero_point_of(quantize)
        if zero_point is None or (code is None and input_at(node, 2) is not None):
            return False
        step, dtype = scale_of(quantize), scale_of(quantize).dtype
        steps = (0.0 if code is None else float(code.item())) - float(zero_point.item())
        value = np.asarray(steps * float(step.item()), dtype)
        name = f"{node.outputs[0].name}_padding"
        pads, axes = node.inputs[1], node.inputs[3:]
        node.inputs = [self._values(quantize), pads, self.names.constant(name, value), *axes]
        return True

    def _values(self, quantize: gs.Node) -> gs.Tensor:
        """The values of the codes that `quantize` writes."""
        if id(quantize) in self._on_grid:
            return quantize.inputs[0]
        codes = quantize.outputs[0]
        for reader in codes.outputs:
            if reader.op == DEQUANTIZE and same_grid(reader, quantize):
                return reader.outputs[0]
        values = gs.Variable(
            self.names.fresh(f"{codes.name}_values"), _dtype(quantize), codes.shape
        )
        inputs = [codes, *quantize.inputs[1:]]
        name = self.names.fresh(f"{codes.name}_dequantize")
        self.graph.nodes.append(gs.Node(DEQUANTIZE, name, dict(quantize.attrs), inputs, [values]))
        return values

    def _requantize(self, quantize: gs.Node, codes: gs.Tensor, is_on_grid: bool) -> gs.Tensor:
        """What is written in the place of `codes`, which a QuantizeLinear makes of it for who wants codes."""
        values = gs.Variable(self.names.fresh(f"{codes.name}_float"), _dtype(quantize), codes.shape)
        codes.dtype = quantize.outputs[0].dtype
        inputs = [values, *quantize.inputs[1:]]
        name = self.names.fresh(f"{codes.name}_quantize")
        again = gs.Node(QUANTIZE, name, dict(quantize.attrs), inputs, [codes])
        self.graph.nodes.append(again)
        if is_on_grid:
            self._on_grid.add(id(again))
            for reader in [one for one in codes.outputs if one.op == DEQUANTIZE]:
                is_output = is_any(reader.outputs[0], self.graph.outputs)
                if same_grid(reader, quantize) and not is_output:
                    replace_reads(reader.outputs[0], values)
        return values


def _dtype(quantize: gs.Node) -> np.dtype:
    return np.dtype(scale_of(quantize).dtype)


def _quantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The QuantizeLinear with one constant 8-bit grid that writes `tensor`, or None."""
    node = producer(tensor)
    if node is None or node.op != QUANTIZE:
        return None
    scale, zero_point = constant_at(node, 1), constant_at(node, 2)
    is_byte = zero_point is not None and zero_point.dtype in BYTE_TYPES
    return node if is_byte and scale is not None and scale.size == 1 else None


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
