"""Concats that a quantized layer reads: one scale for what they join, or a pair behind them.

With different scales and no pair on its output, the next convolution leaves INT8 (measured on
TensorRT-RTX 1.7). Where the scales differ by no more than a factor of four, which costs the finer tensor
12 dB at most, they become one and TensorRT joins codes without requantizing them. Where they differ by
more, one scale would take the digits of the finer tensor away from all that read it: each keeps its own,
and a pair of the largest scale follows the concat. A concat that no quantized layer reads stays as it is,
and so does one with a pair behind it.
"""

from __future__ import annotations

from typing import NamedTuple

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
        leading = _leading_to_layers(graph)
        for group in _groups(graph, leading):
            scales = [_scale(node) for node in group.quantizers]
            if max(scales) <= LARGEST_RATIO * min(scales):
                changed += _tie(graph, names, group.quantizers)
            else:
                for concat, widest in group.concats:
                    _follow(graph, names, concat, widest, leading)
                changed += len(group.concats)
        return changed


class _Group(NamedTuple):
    """QuantizeLinear nodes that meet in Concats; each Concat with the one of the largest scale in it."""

    quantizers: list[gs.Node]
    concats: list[tuple[gs.Node, gs.Node]]


def _groups(graph: gs.Graph, leading: set[int]) -> list[_Group]:
    """The groups of different scales; every input of their Concats is quantized, a layer reads them."""
    families = _Families()
    for concat in nodes_of(graph, "Concat"):
        sources = [_source(part, families) for part in concat.inputs]
        found = [source for source in sources if source is not None]
        if found and len(found) == len(sources) and id(concat) in leading:
            families.join(found, concat)
    groups = families.with_concats()
    return [group for group in groups if len({_scale(node) for node in group.quantizers}) > 1]


def _leading_to_layers(graph: gs.Graph) -> set[int]:
    """Ids of nodes from which codes reach a layer with a quantized weight, but for moves."""
    leading: set[int] = set()
    for node in reversed(graph.nodes):  # in order, so that readers are known
        moves = commutes(node) or node.op in ("Concat", "Cast")
        if _is_quantized_layer(node) or (
            moves and any(id(reader) in leading for reader in node.outputs[0].outputs)
        ):
            leading.add(id(node))
    return leading


def _is_quantized_layer(node: gs.Node) -> bool:
    if node.op not in _LAYERS:
        return False
    maker = producer(node.inputs[1])
    while maker is not None and maker.op in ("Transpose", "Cast", "Reshape"):
        maker = producer(maker.inputs[0])
    return maker is not None and maker.op == DEQUANTIZE


def _scale(quantize: gs.Node) -> float:
    return float(scale_of(quantize).item())


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


def _follow(
    graph: gs.Graph, names: Names, concat: gs.Node, widest: gs.Node, leading: set[int]
) -> None:
    """Put a pair of the scale of `widest` between `concat` and the layers that read it."""
    joined, stem = concat.outputs[0], concat.outputs[0].name
    readers = [node for node in joined.outputs if id(node) in leading]
    scale = names.constant(f"{stem}_scale", scale_of(widest))
    zero = names.constant(f"{stem}_zero_point", np.zeros(scale.values.shape, np.int8))
    codes = gs.Variable(names.fresh(f"{stem}_codes"), np.int8, joined.shape)
    values = gs.Variable(names.fresh(f"{stem}_dequantized"), scale.values.dtype, joined.shape)
    for op, source, target in ((QUANTIZE, joined, codes), (DEQUANTIZE, codes, values)):
        name = names.fresh(f"{stem}_{op}")
        graph.nodes.append(gs.Node(op, name, inputs=[source, scale, zero], outputs=[target]))
    for reader in readers:
        reader.inputs = [values if tensor is joined else tensor for tensor in reader.inputs]


def _source(tensor: gs.Tensor, families: _Families) -> gs.Node | None:
    """The QuantizeLinear whose codes are in `tensor`, or None if it is not of codes alone.

    Of a Concat it is the one of the largest scale: those of a Concat are one family.
    """
    node = producer(tensor)
    while node is not None and commutes(node):
        node = producer(node.inputs[0])
    if node is None:
        return None
    if node.op == "Concat":
        return families.of_concat(node)
    if node.op != DEQUANTIZE:
        return None
    quantize = producer(node.inputs[0])
    is_pair = quantize is not None and quantize.op == QUANTIZE and _is_plain(quantize)
    return quantize if is_pair else None


class _Families:
    """Nodes that meet in Concats: a forest whose trees are joined at their roots."""

    def __init__(self) -> None:
        self._nodes: dict[int, gs.Node] = {}
        self._parents: dict[int, int] = {}
        self._concats: dict[int, tuple[gs.Node, gs.Node]] = {}

    def join(self, nodes: list[gs.Node], concat: gs.Node) -> None:
        """Make one family of those of `nodes`, which meet in `concat`."""
        for node in nodes:
            self._nodes.setdefault(id(node), node)
            self._parents[self._root(id(nodes[0]))] = self._root(id(node))
        self._concats[id(concat)] = (concat, max(nodes, key=_scale))

    def of_concat(self, concat: gs.Node) -> gs.Node | None:
        """The node of the largest scale in `concat`; None where not all of its inputs are codes."""
        return self._concats.get(id(concat), (concat, None))[1]

    def with_concats(self) -> list[_Group]:
        """Every family with its Concats."""
        groups: dict[int, _Group] = {}
        for key, node in self._nodes.items():
            groups.setdefault(self._root(key), _Group([], [])).quantizers.append(node)
        for pair in self._concats.values():
            groups[self._root(id(pair[1]))].concats.append(pair)
        return list(groups.values())

    def _root(self, key: int) -> int:
        parents = self._parents
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key


def _is_plain(quantize: gs.Node) -> bool:
    """Whether `quantize` is symmetric int8 per tensor, and all that reads it undoes it."""
    if zero_point_of(quantize) is None or not is_symmetric_int8(quantize):
        return False
    readers = quantize.outputs[0].outputs
    return scale_of(quantize).size == 1 and all(
        reader.op == DEQUANTIZE and same_grid(quantize, reader) for reader in readers
    )
