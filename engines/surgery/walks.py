"""Where the values of a tensor go: questions that are asked of many tensors, answered in one walk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_graphsurgeon as gs

from reptrt.engines.surgery.qdq import producer


def reaching(
    nodes: Iterable[gs.Node], is_goal: Callable[[gs.Node], bool], passes: Callable[[gs.Node], bool]
) -> set[int]:
    """Return `id` of each tensor that a goal reads, itself or behind nodes that `passes` holds for.

    Of a node that is passed, the first output counts.
    """
    pending = [tensor for node in nodes if is_goal(node) for tensor in node.inputs]
    found: set[int] = set()
    while pending:
        tensor = pending.pop()
        if id(tensor) in found:
            continue
        found.add(id(tensor))
        writer = producer(tensor)
        if writer is not None and writer.outputs[0] is tensor and passes(writer):
            pending += writer.inputs
    return found
