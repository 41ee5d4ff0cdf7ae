"""Nodes that no importer knows, put together into islands (`reptrt.models.onnx_import.island_op`).

Neighbours merge where no other node lies between them, on whatever way, so that no circle arises.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.models.inputs import other_sizes, random_feed, resize_feed
from reptrt.models.onnx_import.canonical import CanonicalGraph
from reptrt.models.onnx_import.data import OnnxFileError, list_tensors, num_bytes
from reptrt.models.onnx_import.island_op import IslandOutput, write_outputs
from reptrt.models.onnx_import.pieces import (
    batch_source,
    boundary,
    extract,
    makers,
    repeat_with_operators,
    tensors_read,
)
from reptrt.models.onnx_import.values import run_onnx

Array = NDArray[Any]
ISLAND = "Island"


@dataclass(frozen=True)
class IslandNote:
    """What is said of an island.

    Attributes:
        nodes: Names of its nodes, as in the file.
        op_types: Their operators, without repetition.
        reason: Why the first of them is not imported.
        weight_bytes: What they hold.
        is_tail: Whether nothing but outputs follows.
    """

    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    reason: str
    weight_bytes: int = 0
    is_tail: bool = False


class Values:
    """Values of tensors of a canonical graph, computed by ONNX Runtime when first asked for."""

    def __init__(self, canonical: CanonicalGraph) -> None:
        self._proto = gs.export_onnx(repeat_with_operators(canonical.graph.copy()), False)
        self._batch = canonical.batch_size
        inputs = canonical.inputs
        two = random_feed(inputs, 2)
        self._batches = [resize_feed(two, inputs, self._batch or 1)]
        if self._batch is None:
            self._batches.append(two)
        self._others = [random_feed(sized, self._batch or 1) for sized in other_sizes(inputs)]
        self._known: list[dict[str, Array]] = [{} for _ in self._batches]

    def of(self, names: Collection[str]) -> list[dict[str, Array]]:
        """Values for one image (or the fixed batch), and for two where that is possible."""
        missing = [name for name in names if name not in self._known[0]]
        if missing:
            found = run_onnx(self._proto, missing, self._batches)
            for known, new in zip(self._known, found, strict=True):
                known.update(new)
        return self._known

    def describe(self, name: str) -> IslandOutput:
        """Type and sides of a tensor.

        Raises:
            OnnxFileError: its number of axes changes with the batch, or its sides with an open size.
        """
        values = [known[name] for known in self.of([name])]
        one, two = values[0], values[-1]
        if one.ndim != two.ndim:
            raise OnnxFileError(f"{name!r} has {one.ndim} axes for one image, {two.ndim} for two")
        for found in run_onnx(self._proto, [name], self._others) if self._others else ():
            if found[name].shape != one.shape:
                raise OnnxFileError(
                    f"{name!r} changes with the size of the image, and what makes it runs in ONNX Runtime"
                    " while calibrating: fix the size with `image_size`"
                )
        sides = zip(one.shape, two.shape, strict=True)
        return IslandOutput(one.dtype.name, tuple((2 * a - b, b - a) for a, b in sides))


def group_neighbours(graph: gs.Graph, islands: Collection[str]) -> list[list[str]]:
    """Merge the nodes called `islands` into groups, each without a way out of it and back in.

    The level of a node counts the changes between island and other nodes on the longest way to it. Two
    nodes of an island on one level have no other node between them.
    """
    made_by = makers(graph)
    level: dict[str, int] = {}
    group: dict[str, list[str]] = {}
    for node in graph.nodes:
        inside = node.name in islands
        sources = [made_by[t.name] for t in tensors_read(node) if t.name in made_by]
        steps = [level[s.name] + ((s.name in islands) != inside) for s in sources]
        level[node.name] = max(steps, default=0)
        if inside:
            joined = group[node.name] = [node.name]
            for source in sources:
                if source.name in islands and level[source.name] == level[node.name]:
                    other = group[source.name]
                    if other is not joined:
                        joined.extend(other)
                        group.update(dict.fromkeys(other, joined))
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    unique = {id(names): sorted(names, key=order.__getitem__) for names in group.values()}
    return list(unique.values())


def collapse(
    canonical: CanonicalGraph, reasons: Mapping[str, str], values: Values
) -> list[IslandNote]:
    """Put one node in the place of every group of nodes that `reasons` names, in place."""
    graph = canonical.graph
    return [
        _collapse_group(graph, names, reasons, values)
        for names in group_neighbours(graph, set(reasons))
    ]


def _collapse_group(
    graph: gs.Graph, names: Sequence[str], reasons: Mapping[str, str], values: Values
) -> IslandNote:
    reads, made = boundary(graph, set(names))
    examples = values.of([*reads, *made])[0]
    try:
        piece = extract(graph, reads, made, examples)
    except OnnxFileError as error:
        raise OnnxFileError(f"{reasons[names[0]]}; as an island, {error}") from None
    members = [node for node in graph.nodes if node.name in names]
    tensors = graph.tensors()
    packed = gs.Constant(f"{names[0]}_model", np.frombuffer(piece.SerializeToString(), np.uint8))
    note = IslandNote(tuple(names), op_types(members), reasons[names[0]], sum_weights(piece))
    place = graph.nodes.index(members[0])
    for node in members:
        node.outputs.clear()
        graph.nodes.remove(node)
    island = gs.Node(ISLAND, f"island_{names[0]}", inputs=[batch_source(graph)])
    island.attrs = {
        "outputs": write_outputs([values.describe(name) for name in made]),
        "op_types": " ".join(note.op_types),
    }
    island.inputs.extend([*(tensors[name] for name in reads), packed])
    island.outputs = [tensors[name] for name in made]
    graph.nodes.insert(place, island)
    return note


def op_types(nodes: Sequence[gs.Node]) -> tuple[str, ...]:
    """Operators of `nodes`, without repetition."""
    return tuple(dict.fromkeys(node.op for node in nodes))


def sum_weights(piece: onnx.ModelProto) -> int:
    """Bytes of the constants of a model."""
    return sum(num_bytes(tensor) for tensor in list_tensors(piece.graph))
