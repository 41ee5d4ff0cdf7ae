"""Edges of the graph: point readers elsewhere, take a node out of its chain."""

from __future__ import annotations

import onnx_graphsurgeon as gs


def is_any(tensor: gs.Tensor, tensors: list[gs.Tensor]) -> bool:
    """Whether `tensor` itself (not one of the same name) is in `tensors`."""
    return any(tensor is other for other in tensors)


def replace_reads(old: gs.Tensor, new: gs.Tensor) -> None:
    """Make every node that reads `old` read `new`."""
    for node in list(old.outputs):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new


def bypass(graph: gs.Graph, node: gs.Node) -> bool:
    """Join the first input of `node` to its first output; return False where that cannot be.

    A graph output keeps its name and type. It cannot be joined to a graph input, to a constant or
    to another graph output: there the node stays. So it does where its other outputs are used.
    """
    source, target = node.inputs[0], node.outputs[0]
    if any(extra.outputs or is_any(extra, graph.outputs) for extra in node.outputs[1:]):
        return False
    if not is_any(target, graph.outputs):
        replace_reads(target, source)
        node.outputs.clear()
        return True
    if not source.inputs or is_any(source, graph.outputs):
        return False
    writer = source.inputs[0]
    node.inputs.clear()
    node.outputs.clear()
    replace_reads(source, target)
    writer.outputs[next(i for i, out in enumerate(writer.outputs) if out is source)] = target
    return True
