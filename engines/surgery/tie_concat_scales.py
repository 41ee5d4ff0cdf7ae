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
    groups: list[list[gs.Node]] = []
    carried: list[list[gs.Node]] = []
    for quantize in nodes_of(graph, QUANTIZE):
        sources = _sources(quantize.inputs[0])
        if sources and _is_plain(quantize):
            carried.append([*sources, quantize])
    for concat in nodes_of(graph, "Concat"):
        sources = _sources(concat.outputs[0])
        if sources:
            groups.append(sources)
    return _merge(groups, carried)


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


def _merge(groups: list[list[gs.Node]], carried: list[list[gs.Node]]) -> list[list[gs.Node]]:
    """Join groups that share a node; chains in `carried` only extend what touches a group."""
    merged: list[dict[int, gs.Node]] = []
    pending = [{id(node): node for node in group} for group in groups]
    chains = [{id(node): node for node in chain} for chain in carried]
    while pending:
        group = pending.pop()
        touching = [other for other in pending + chains if group.keys() & other.keys()]
        if touching:
            pending = [other for other in pending if not group.keys() & other.keys()]
            chains = [other for other in chains if not group.keys() & other.keys()]
            for other in touching:
                group = group | other
            pending.append(group)
        else:
            merged.append(group)
    return [list(group.values()) for group in merged]
