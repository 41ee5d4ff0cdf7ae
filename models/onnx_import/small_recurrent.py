"""LSTMs and GRUs of a few hidden units, widened by units that stay 0.

TensorRT-RTX 1.7.1 compiles such a layer for hours: a GRU of 6 units over 6 steps took more than 6 minutes and
12 GB, of 7 units 0.2 s. A unit without weights is 0 at every step, so the others compute what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.models.onnx_import.pieces import Fresh

Array = NDArray[Any]
_FEWEST = 8
_GATES = {"LSTM": 4, "GRU": 3}
_ENDS_ARE_INPUT = 10
_PADS_ARE_INPUT = 11
_STATES, _PEEPHOLES = (5, 6), 7


def widen_small_recurrent(graph: gs.Graph) -> int:
    """Give every LSTM and GRU of `graph` 8 units or more, in place; return how many had fewer."""
    small = [node for node in graph.nodes if _is_small(node) and graph.opset >= _ENDS_ARE_INPUT]
    for node in small:
        _widen(graph, node)
    return len(small)


def _is_small(node: gs.Node) -> bool:
    """Whether `node` has few units, whose weights are constants."""
    if node.op not in _GATES or node.attrs.get("hidden_size", _FEWEST) >= _FEWEST:
        return False
    parts = [tensor for index, tensor in enumerate(node.inputs) if index not in (0, 4, *_STATES)]
    is_constant = all(isinstance(tensor, gs.Constant) for tensor in parts if tensor.name)
    is_usual = not node.attrs.keys() & {"activations", "clip", "layout"}
    return is_constant and is_usual and not any(t.name for t in node.inputs[_PEEPHOLES:])


def _widen(graph: gs.Graph, node: gs.Node) -> None:
    fresh, gates, units = Fresh(graph), _GATES[node.op], int(node.attrs["hidden_size"])
    missing = _FEWEST - units
    for index, tensor in enumerate(node.inputs):
        if index in _STATES and isinstance(tensor, gs.Variable) and tensor.name:
            node.inputs[index] = _pad_state(graph, node, tensor, missing, fresh)
        if index in (0, 4) or not isinstance(tensor, gs.Constant):
            continue
        count = {1: gates, 2: gates, 3: 2 * gates}.get(index)
        values = tensor.values
        if count is not None:  # rows of every gate in turn
            values = _pad_rows(values, count, missing)
        if index in (2, 5, 6):  # what is read of the units themselves
            values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
        node.inputs[index] = gs.Constant(fresh(f"{tensor.name}_widened"), values)
    node.attrs["hidden_size"] = _FEWEST
    for output in [output for output in node.outputs if output.name]:
        _cut(graph, node, output, units, fresh)


def _pad_state(
    graph: gs.Graph, node: gs.Node, state: gs.Tensor, missing: int, fresh: Fresh
) -> gs.Tensor:
    """A first state [directions, N, units] that is no constant, with zeros for `missing` more units."""
    padded, pads = gs.Variable(fresh(f"{state.name}_widened"), state.dtype), [0] * 5 + [missing]
    as_input = graph.opset >= _PADS_ARE_INPUT
    more = [gs.Constant(fresh(f"{state.name}_pads"), np.array(pads, np.int64))] if as_input else []
    attrs = {} if as_input else {"pads": pads}
    padder = gs.Node("Pad", fresh(f"{state.name}_pad"), attrs, [state, *more], [padded])
    graph.nodes.insert(next(i for i, one in enumerate(graph.nodes) if one is node), padder)
    return padded


def _pad_rows(values: Array, count: int, missing: int) -> Array:
    """[directions, count x units, ...] with `missing` more rows for each of `count`."""
    directions, rows, *rest = values.shape
    split = values.reshape(directions, count, rows // count, *rest)
    padded = np.pad(split, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * len(rest)])
    return padded.reshape(directions, -1, *rest)


def _cut(graph: gs.Graph, node: gs.Node, output: gs.Tensor, units: int, fresh: Fresh) -> None:
    """Cut `output` out of what `node` makes in its place."""
    whole = gs.Variable(fresh(f"{output.name}_widened"), output.dtype)
    limits: Sequence[tuple[str, int]] = (("start", 0), ("end", units), ("axis", -1))
    constants = [
        gs.Constant(fresh(f"{output.name}_{what}"), np.array([value], np.int64))
        for what, value in limits
    ]
    name = fresh(f"{output.name}_cut")
    cut = gs.Node("Slice", name, inputs=[whole, *constants], outputs=[])
    at = next(index for index, one in enumerate(graph.nodes) if one is node)
    node.outputs = [whole if tensor is output else tensor for tensor in node.outputs]
    cut.outputs = [output]
    graph.nodes.insert(at + 1, cut)
