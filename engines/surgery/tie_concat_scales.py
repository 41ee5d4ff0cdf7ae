"""One scale around a Concat, so that TensorRT joins int8 codes without requantizing them.

With different scales and no pair on its output, the next convolution even leaves INT8 (measured
on TensorRT-RTX 1.7). The scale is carried through operators that only move values (MaxPool, ...).
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


class TieConcatScales(Pass):
    """Give all pairs that meet in a Concat the largest of their scales.

    Only where every input of the Concat is quantized (symmetric, per tensor) and the scales
    differ. A tensor whose scale grows is rounded in larger steps, and a Clip keeps it inside its
    old range: the result is within one step of the shared scale.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Tie in place; a site is a QuantizeLinear whose scale changed."""
        changed = 0
        names = Names(graph)
        for group in _groups(graph):
            largest = max(float(scale_of(node).item()) for node in group)
            smaller = [node for node in group if float(scale_of(node).item()) < largest]
            for node in smaller:  # all clips first: they are judged by the old grids
                step = float(scale_of(node).item())
                keep_saturation(graph, names, node, (-128 * step, 127 * step), largest)
            for node in smaller:
                tied = np.full_like(scale_of(node), largest)
                for member in (node, *node.outputs[0].outputs):
                    set_grid(names, member, tied, np.zeros(tied.shape, np.int8))
            changed += len(smaller)
        return changed


def _groups(graph: gs.Graph) -> list[list[gs.Node]]:
    """The sets of QuantizeLinear nodes that must share a scale, each with a Concat inside."""
    families = _Families()
    for concat in nodes_of(graph, "Concat"):
        sources = [_source(part, families) for part in concat.inputs]
        found = [source for source in sources if source is not None]
        if found and len(found) == len(sources):
            families.join(found, concat)
    for quantize in nodes_of(graph, QUANTIZE):
        source = _source(quantize.inputs[0], families)
        if source is not None and _is_plain(quantize):
            families.join([source, quantize])
    return families.with_concat()


def _source(tensor: gs.Tensor, families: _Families) -> gs.Node | None:
    """A QuantizeLinear node whose codes are in `tensor`, or None if it is not of codes alone.

    Those of a Concat are one family, so that any of them stands for all.
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
    """Nodes that must share a scale: a forest whose trees are joined at their roots."""

    def __init__(self) -> None:
        self._nodes: dict[int, gs.Node] = {}
        self._parents: dict[int, int] = {}
        self._by_concat: dict[int, gs.Node] = {}

    def join(self, nodes: list[gs.Node], concat: gs.Node | None = None) -> None:
        """Make one family of those of `nodes`, which meet in `concat`."""
        for node in nodes:
            self._nodes.setdefault(id(node), node)
            self._parents[self._root(id(nodes[0]))] = self._root(id(node))
        if concat is not None:
            self._by_concat[id(concat)] = nodes[0]

    def of_concat(self, concat: gs.Node) -> gs.Node | None:
        """One of the nodes that meet in `concat`; None where not all of its inputs are codes."""
        return self._by_concat.get(id(concat))

    def with_concat(self) -> list[list[gs.Node]]:
        """The families in which a Concat is, and those alone."""
        roots = {self._root(id(node)) for node in self._by_concat.values()}
        families: dict[int, list[gs.Node]] = {root: [] for root in roots}
        for key, node in self._nodes.items():
            if self._root(key) in roots:
                families[self._root(key)].append(node)
        return list(families.values())

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
