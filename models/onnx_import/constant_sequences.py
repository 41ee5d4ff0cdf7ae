"""Sequences of tensors, as scripted PyTorch writes `split`, `unbind` and lists, as the tensors that they hold.

TensorRT has no sequences. Where no pixel decides how many tensors one holds and which is taken, a Split, a Concat
or nothing at all does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.pieces import Fresh, pixel_tensors
from reptrt.models.onnx_import.values import infer_shapes

_PARTS_ARE_READ = 13  # first opset whose Split, Squeeze and Unsqueeze have their numbers as inputs
_MOST_PARTS = 4096


def write_sequences(graph: gs.Graph, batch: int) -> gs.Graph:
    """Write what reads sequences of known tensors of `graph` by these tensors, in place; return `graph`.

    Args:
        graph: in order, with constants and names; it computes `batch` images.
        batch: images; an axis that counts them is not split.
    """
    if not any(node.op in _RULES for node in graph.nodes):
        return graph
    writer = _Writer(graph, infer_shapes(graph, batch))
    for node in list(graph.nodes):
        rule = _RULES.get(node.op)
        if rule is not None and (held := rule(writer, node)) is not None:
            writer.held[node.outputs[0].name] = held
    return sort_nodes(graph.cleanup())


class _Writer:
    """A graph and what its sequences hold."""

    def __init__(self, graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.held: dict[str, list[gs.Tensor]] = {}
        self.shapes, self.pixels = shapes, pixel_tensors(graph)
        self._graph, self._fresh, self._reads = graph, Fresh(graph), graph.opset >= _PARTS_ARE_READ

    def of(self, node: gs.Node) -> list[gs.Tensor] | None:
        """What the sequence that `node` reads holds; None where nobody knows."""
        return self.held.get(node.inputs[0].name)

    def split(self, node: gs.Node, axis: int, sizes: list[int]) -> list[gs.Tensor]:
        """Parts of what `node` reads."""
        parts = [gs.Variable(self._fresh(f"{node.name}_part"), node.inputs[0].dtype) for _ in sizes]
        self._add("Split", node, node.inputs[0], parts, "split", sizes, {"axis": axis})
        return parts

    def turn(self, op: str, node: gs.Node, tensor: gs.Tensor, axis: int) -> gs.Tensor:
        """`tensor` with an axis of 1 taken away or put in."""
        made = gs.Variable(self._fresh(f"{node.name}_{op.lower()}"), tensor.dtype)
        self._add(op, node, tensor, [made], "axes", [axis], {})
        return made

    def _add(
        self,
        op: str,
        node: gs.Node,
        tensor: gs.Tensor,
        outputs: list[gs.Tensor],
        key: str,
        numbers: list[int],
        attrs: dict[str, object],
    ) -> None:
        name = self._fresh(f"{node.name}_{op.lower()}")
        inputs = [tensor]
        if self._reads:
            inputs.append(gs.Constant(self._fresh(f"{name}_{key}"), np.array(numbers, np.int64)))
        else:
            attrs = {**attrs, key: numbers}
        self._graph.nodes.append(gs.Node(op, name, attrs, inputs, outputs))


def _integers(node: gs.Node, index: int) -> list[int] | None:
    """Of a constant input; None where it is absent or computed."""
    given = node.inputs[index] if index < len(node.inputs) else None
    return np.ravel(given.values).tolist() if isinstance(given, gs.Constant) else None


def _place(node: gs.Node, index: int, default: int | None) -> int | None:
    """A position in a sequence; `default` where it is absent, None where it is computed."""
    if len(node.inputs) <= index or not node.inputs[index].name:
        return default
    found = _integers(node, index)
    return found[0] if found else None


def _split(writer: _Writer, node: gs.Node) -> list[gs.Tensor] | None:
    shape = writer.shapes.get(node.inputs[0].name, ())
    axis = int(node.attrs.get("axis", 0))
    axis += len(shape) * (axis < 0)
    is_counted = axis == 0 and node.inputs[0].name in writer.pixels
    if is_counted or axis >= len(shape):
        return None
    if len(node.inputs) < 2 or not node.inputs[1].name:
        sizes = [1] * shape[axis]
    else:
        given = _integers(node, 1)
        if not given or given[0] < 1:
            return None
        whole, rest = divmod(shape[axis], given[0])
        is_scalar = node.inputs[1].values.ndim == 0
        sizes = [given[0]] * whole + [rest] * (rest > 0) if is_scalar else given
    if not sizes or len(sizes) > _MOST_PARTS:
        return None
    parts = writer.split(node, axis, sizes)
    if len(node.inputs) < 2 and not node.attrs.get("keepdims", 1):
        return [writer.turn("Squeeze", node, part, axis) for part in parts]
    return parts


def _empty(writer: _Writer, node: gs.Node) -> list[gs.Tensor]:
    return []


def _construct(writer: _Writer, node: gs.Node) -> list[gs.Tensor]:
    return list(node.inputs)


def _insert(writer: _Writer, node: gs.Node) -> list[gs.Tensor] | None:
    held = writer.of(node)
    place = None if held is None else _place(node, 2, len(held))
    if held is None or place is None:
        return None
    place += len(held) * (place < 0)
    return [*held[:place], node.inputs[1], *held[place:]]


def _erase(writer: _Writer, node: gs.Node) -> list[gs.Tensor] | None:
    held, place = writer.of(node), _place(node, 1, -1)
    if not held or place is None:
        return None
    place %= len(held)
    return held[:place] + held[place + 1 :]


def _at(writer: _Writer, node: gs.Node) -> None:
    held, place = writer.of(node), _place(node, 1, None)
    if held and place is not None and -len(held) <= place < len(held):
        node.op, node.attrs, node.inputs = "Identity", {}, [held[place]]


def _length(writer: _Writer, node: gs.Node) -> None:
    held = writer.of(node)
    if held is not None:
        count = gs.Constant(f"{node.outputs[0].name}_count", np.array(len(held), np.int64))
        node.op, node.attrs, node.inputs = "Identity", {}, [count]


def _concat(writer: _Writer, node: gs.Node) -> None:
    held = writer.of(node)
    if not held:
        return
    axis, is_new = int(node.attrs["axis"]), bool(node.attrs.get("new_axis", 0))
    parts = [writer.turn("Unsqueeze", node, part, axis) for part in held] if is_new else held
    node.op, node.attrs, node.inputs = "Concat", {"axis": axis}, list(parts)


_RULES: dict[str, Callable[[_Writer, gs.Node], list[gs.Tensor] | None]] = {
    "SplitToSequence": _split,
    "SequenceEmpty": _empty,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
}
