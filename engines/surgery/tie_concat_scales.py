"""Concats that a quantized layer reads: one scale for what they join, or a pair behind them.

With different scales and no pair on its output, the next convolution leaves INT8 (measured on
TensorRT-RTX 1.7). Where the scales differ by no more than a factor of four, which costs the finer tensor
12 dB at most, they become one and TensorRT joins codes without requantizing them. Where they differ by
more, one scale would take the digits of the finer tensor away from all that read it: each keeps its own,
and a pair of the largest scale follows the concat. A concat that no quantized layer reads stays as it is,
and so does one with a pair behind it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.keep_saturation import keep_saturation
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    is_symmetric_int8,
    nodes_of,
    producer,
    same_grid,
    scale_of,
    set_grid,
    zero_point_of,
)

LARGEST_RATIO = 4.0
"""Of scales that become one: 20 log10(4) = 12 dB of the finer tensor, two of its eight bits."""

_LAYERS = ("Conv", "Gemm", "MatMul")


class TieConcatScales(Pass):
    """Give the pairs that meet in a Concat the largest of their scales, or the Concat a pair.

    Only where every input of the Concat is quantized (symmetric, per tensor), the scales differ and a
    quantized layer reads the Concat without a pair between. A tensor whose scale grows is rounded in
    steps up to four times as large, and a Clip keeps it inside its old range.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is a QuantizeLinear whose scale changed, or a new pair."""
        changed = 0
        names = Names(graph)
        for group in _merge(_groups(graph)):
            scales = [_scale(node) for node in group.quantizers]
            if max(scales) <= LARGEST_RATIO * min(scales):
                changed += _tie(graph, names, group.quantizers)
            else:
                changed += sum(_follow(graph, names, concat) for concat in group.concats)
        return changed


class _Group:
    """Concats that share inputs, and the QuantizeLinear nodes of these."""

    def __init__(self, concat: gs.Node, quantizers: list[gs.Node]) -> None:
        self.concats = [concat]
        self.quantizers = list({id(node): node for node in quantizers}.values())

    def shares_with(self, other: _Group) -> bool:
        own = {id(node) for node in self.quantizers}
        return any(id(node) in own for node in other.quantizers)

    def add(self, other: _Group) -> None:
        self.concats += other.concats
        both = [*self.quantizers, *other.quantizers]
        self.quantizers = list({id(node): node for node in both}.values())


def _groups(graph: gs.Graph) -> list[_Group]:
    """Every Concat of quantized tensors of different scales that a quantized layer reads."""
    groups = []
    for concat in nodes_of(graph, "Concat"):
        sources = _sources(concat.outputs[0])
        if sources and _is_read_by_layer(concat.outputs[0]):
            groups.append(_Group(concat, sources))
    return [group for group in groups if len({_scale(node) for node in group.quantizers}) > 1]


def _merge(groups: list[_Group]) -> list[_Group]:
    merged: list[_Group] = []
    for group in groups:
        touching = [other for other in merged if other.shares_with(group)]
        merged = [other for other in merged if not other.shares_with(group)]
        for other in touching:
            group.add(other)
        merged.append(group)
    return merged


def _scale(quantize: gs.Node) -> float:
    return float(scale_of(quantize).item())


def _is_read_by_layer(tensor: gs.Tensor) -> bool:
    """Whether a layer with a quantized weight reads `tensor` with nothing but moves between."""
    return any(_leads_to_layer(node) for node in tensor.outputs)


def _leads_to_layer(node: gs.Node) -> bool:
    if node.op in _LAYERS:
        maker = producer(node.inputs[1])
        while maker is not None and maker.op in ("Transpose", "Cast", "Reshape"):
            maker = producer(maker.inputs[0])
        return maker is not None and maker.op == DEQUANTIZE
    moves = commutes(node) or node.op in ("Concat", "Cast")
    return moves and _is_read_by_layer(node.outputs[0])


def _tie(graph: gs.Graph, names: Names, quantizers: list[gs.Node]) -> int:
    largest = max(_scale(node) for node in quantizers)
    smaller = [node for node in quantizers if _scale(node) < largest]
    for node in smaller:  # all clips first: they are judged by the old grids
        step = _scale(node)
        keep_saturation(graph, names, node, (-128 * step, 127 * step), largest)
    for node in smaller:
        tied = np.full_like(scale_of(node), largest)
        for member in (node, *node.outputs[0].outputs):
            set_grid(names, member, tied, np.zeros(tied.shape, np.int8))
    return len(smaller)


def _follow(graph: gs.Graph, names: Names, concat: gs.Node) -> int:
    """Put a pair of the largest scale between `concat` and the layers that read it."""
    sources = _sources(concat.outputs[0])
    assert sources  # `_groups` asked
    widest = max(sources, key=_scale)
    joined, stem = concat.outputs[0], concat.outputs[0].name
    readers = [node for node in joined.outputs if _leads_to_layer(node)]
    scale = names.constant(f"{stem}_scale", scale_of(widest))
    zero = names.constant(f"{stem}_zero_point", np.zeros(scale.values.shape, np.int8))
    codes = gs.Variable(names.fresh(f"{stem}_codes"), np.int8, joined.shape)
    values = gs.Variable(names.fresh(f"{stem}_dequantized"), scale.values.dtype, joined.shape)
    for op, source, target in ((QUANTIZE, joined, codes), (DEQUANTIZE, codes, values)):
        name = names.fresh(f"{stem}_{op}")
        graph.nodes.append(gs.Node(op, name, inputs=[source, scale, zero], outputs=[target]))
    for reader in readers:
        reader.inputs = [values if tensor is joined else tensor for tensor in reader.inputs]
    return 1


def _sources(tensor: gs.Tensor) -> list[gs.Node] | None:
    """The QuantizeLinear nodes whose codes `tensor` is made of, or None if not of codes alone."""
    node = producer(tensor)
    if node is None:
        return None
    if node.op == "Concat":
        parts = [_sources(part) for part in node.inputs]
        return None if None in parts else [q for part in parts if part is not None for q in part]
    if commutes(node):
        return _sources(node.inputs[0])
    if node.op != DEQUANTIZE:
        return None
    quantize = producer(node.inputs[0])
    is_pair = quantize is not None and quantize.op == QUANTIZE and _is_plain(quantize)
    return [quantize] if is_pair else None


def _is_plain(quantize: gs.Node) -> bool:
    """Whether `quantize` is symmetric int8 per tensor, and all that reads it undoes it."""
    if zero_point_of(quantize) is None or not is_symmetric_int8(quantize):
        return False
    readers = quantize.outputs[0].outputs
    return scale_of(quantize).size == 1 and all(
        reader.op == DEQUANTIZE and same_grid(quantize, reader) for reader in readers
    )
