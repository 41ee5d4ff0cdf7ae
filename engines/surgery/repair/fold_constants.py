"""Compute, once, what depends on constants only; quantized weights stay quantized."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.engines.foreign.growth import BOUNDED
from reptrt.engines.foreign.limits import MAX_FOLDED_BYTES
from reptrt.engines.surgery.base import Pass

_WIDEST = 8  # bytes of an element
_WARNING, _FATAL = 2, 4  # of ONNX Runtime's log; 2 is its default
_GROWTH = 4  # weights are cast, transposed and added to a few times
# They draw numbers, hold graphs of their own, or take long for what they return.
_KEPT = frozenset(
    (
        *("Bernoulli", "Multinomial", "If", "Loop", "Scan", "SequenceMap"),
        *("Conv", "ConvTranspose", "Einsum", "GRU", "LSTM", "RNN"),
    )
)


class FoldConstants(Pass):
    """Turn Constant nodes and constant sub-graphs into initializers.

    graphsurgeon never folds QuantizeLinear or DequantizeLinear, so int8 weights stay int8. Random and
    custom operators are kept: they are no constants, or ONNX Runtime cannot run them. What would be
    larger than a few times the weights of the file is kept too, and so is what may be.

    Args:
        kept: operators that are not folded, with what follows from them.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        self._kept = _KEPT.union(kept)

    def apply(self, graph: gs.Graph) -> int:
        """Fold in place; a site is a node that became an initializer."""
        sort_nodes(graph.cleanup())
        before = len(graph.nodes)
        small = _small_results(graph, self._kept)
        with _quiet_sessions():
            graph.fold_constants(
                should_exclude_node=lambda node: any(one.name not in small for one in node.outputs)
            )
        graph.cleanup()
        return before - len(graph.nodes)


@contextmanager
def _quiet_sessions() -> Iterator[None]:
    """Inside this context ONNX Runtime's sessions print nothing: graphsurgeon opens some, and it says itself what failed."""
    import onnxruntime  # here: importing it starts threads, which no process that forks may have

    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _small_results(graph: gs.Graph, kept: Collection[str]) -> set[str]:
    """Names of the tensors that follow from constants, as far as the budget reaches."""
    constants = [one for one in graph.tensors().values() if isinstance(one, gs.Constant)]
    elements = {one.name: math.prod(one.shape) for one in constants}
    left = MAX_FOLDED_BYTES + _GROWTH * sum(
        elements[one.name] * _item_bytes(one) for one in constants
    )
    names: set[str] = set()
    for node in graph.nodes:
        if node.op == "Constant":
            names.update(tensor.name for tensor in node.outputs)
            elements.update((tensor.name, 1 << 20) for tensor in node.outputs)
            continue
        inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
        if not _is_foldable(node, kept) or any(tensor.name not in elements for tensor in inputs):
            continue
        counts = _result_elements(node, [elements[tensor.name] for tensor in inputs])
        if counts is None:
            continue
        size = sum(count * _item_bytes(one) for one, count in counts)
        if size <= left:
            left -= size
            names.update(tensor.name for tensor, _ in counts)
            elements.update((tensor.name, count) for tensor, count in counts)
    return names


def _is_foldable(node: gs.Node, kept: Collection[str]) -> bool:
    is_random = node.op in kept or node.op.startswith("Random")
    return not is_random and node.domain in {None, "", "ai.onnx"}


def _result_elements(node: gs.Node, inputs: list[int]) -> list[tuple[gs.Tensor, int]] | None:
    """How many elements each output has at most; None where nobody can tell."""
    at_most = sum(inputs) + math.prod(max(1, count) for count in inputs)
    counts = []
    for tensor in node.outputs:
        shape = tensor.shape
        if shape is not None and all(isinstance(side, int) and side >= 0 for side in shape):
            counts.append((tensor, math.prod(shape)))
        elif node.op in BOUNDED:
            counts.append((tensor, at_most))
        else:
            return None
    return counts


def _item_bytes(tensor: gs.Tensor) -> int:
    try:
        return int(np.dtype(tensor.dtype).itemsize)
    except TypeError:  # unknown, or a type that NumPy does not have
        return _WIDEST
