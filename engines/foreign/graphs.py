"""Walks of graphs from others: each node once and without recursion, however long or deep they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.border import read_bytes
from reptrt.engines.foreign.limits import (
    MAX_CALL_DEPTH,
    MAX_MODEL_BYTES,
    MAX_NODES,
    MAX_SHARED_DATA,
    MAX_TENSOR_BYTES,
)
from reptrt.engines.foreign.text import one_line, visible

_Key = tuple[str, str]


class GraphError(ValueError):
    """A graph that runs in a circle, or that is larger than it looks."""

    exit_code = 2


def sort_nodes(graph: gs.Graph) -> gs.Graph:
    """Put the nodes of `graph` in topological order, in place; those in order keep theirs.

    Raises:
        GraphError: there is no such order.
    """
    nodes = {id(node): node for node in graph.nodes}
    done: dict[int, gs.Node] = {}
    is_open: set[int] = set()
    for node in graph.nodes:
        pending = [node]
        while pending:
            here = pending[-1]
            if id(here) in done:
                pending.pop()
                continue
            waiting = [
                writer
                for tensor in _read_tensors(here)
                for writer in tensor.inputs
                if id(writer) in nodes and id(writer) not in done
            ]
            if any(id(writer) in is_open or writer is here for writer in waiting):
                raise GraphError("the graph runs in a circle")
            if waiting:
                is_open.add(id(here))
                pending += waiting
            else:
                is_open.discard(id(here))
                done[id(here)] = pending.pop()
    graph.nodes = list(done.values())
    return graph


def sort_written_nodes(graph: onnx.GraphProto) -> bool:
    """Put the nodes of a file in topological order, in place; return whether they were in another one.

    Runtimes take such files, as ONNX Runtime's FP16 converter writes them, ONNX's checker does not. A circle
    stays as it is.
    """
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    sources = [
        [makers[name] for name in _read_names(node) if name in makers] for node in graph.node
    ]
    if all(source < index for index, found in enumerate(sources) for source in found):
        return False
    order: dict[int, None] = {}
    is_open: set[int] = set()
    for start in range(len(sources)):
        pending = [start]
        while pending:
            here = pending[-1]
            waiting = [source for source in sources[here] if source not in order]
            if here in order or not waiting:
                order[pending.pop()] = None
                is_open.discard(here)
                continue
            if here in waiting or is_open.intersection(waiting):
                return False
            is_open.add(here)
            pending += waiting
    nodes = list(graph.node)
    copies = [onnx.NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _read_names(node: onnx.NodeProto) -> Iterator[str]:
    """Names of what `node` reads, and of all that the graphs inside it do."""
    pending = [node]
    while pending:
        here = pending.pop()
        yield from here.input
        for attribute in here.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from (value.name for value in inner.output)
                pending += inner.node


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Yield the nodes of `graph`, then those of the graphs inside them."""
    pending = [graph]
    while pending:
        here = pending.pop()
        yield from here.nodes
        for node in reversed(here.nodes):
            pending += reversed(list(inner_graphs(node)))


def inner_graphs(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the graphs that a node of control flow holds."""
    for value in node.attrs.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, gs.Graph):
                yield inner


def require_small_functions(model: onnx.ModelProto) -> None:
    """Check what the functions of `model` are, unfolded, without unfolding them.

    Raises:
        GraphError: they call each other in a circle, too deep, or unfold to too many operators.
    """
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    if not bodies:
        return
    calls = {key: _calls(nodes, bodies) for key, nodes in bodies.items()}
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for start in bodies:
        pending, is_open = [start], set[_Key]()
        while pending:
            key = pending[-1]
            waiting = [other for other in calls[key] if other not in sizes]
            if key in sizes or not waiting:
                pending.pop()
                is_open.discard(key)
                sizes[key] = len(bodies[key]) + sum(sizes[other] for other in calls[key])
                depths[key] = 1 + max((depths[other] for other in calls[key]), default=0)
                continue
            if is_open.intersection(waiting) or key in waiting:
                raise GraphError(f"its function {one_line(key[1])} calls itself")
            is_open.add(key)
            pending += waiting
    total = len(model.graph.node) + sum(sizes[k] for k in _calls(model.graph.node, bodies))
    if total > MAX_NODES:
        raise GraphError(f"its functions unfold to more than {MAX_NODES} operators: inline fewer")
    if max(depths.values()) > MAX_CALL_DEPTH:
        raise GraphError(
            f"its functions call each other {max(depths.values())} deep, more than"
            f" {MAX_CALL_DEPTH}: inline them (onnx.inliner.inline_local_functions)"
        )


def require_small_tensors(path: Path, batch: int, most: int = MAX_TENSOR_BYTES) -> None:
    """Check that no tensor of an ONNX file has more than `most` bytes for a batch of `batch`.

    Raises:
        GraphError: one is, its data lies outside of its folder, or the file is no ONNX file.
    """
    model = onnx.load_model_from_string(read_bytes(path, MAX_MODEL_BYTES, GraphError))
    require_small_functions(model)
    require_data_beside(model, path)
    for value in model.graph.input:
        for side in value.type.tensor_type.shape.dim:
            if not side.HasField("dim_value"):
                side.dim_value = batch
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        if 4 * math.prod(sides) > most:
            raise GraphError(
                f"{visible(str(path))}: its tensor {one_line(value.name)} would have"
                f" {4 * math.prod(sides) / 1e9:.1f} GB, more than {most / 1e9:.1f} GB"
            )


def write_for_checker(model: onnx.ModelProto) -> bool:
    """Sort nodes, and give outputs without a shape the one that follows, in place; return whether that was needed.

    Runtimes take such files, ONNX's checker does not.
    """
    was_unsorted = sort_written_nodes(model.graph)
    missing = [one for one in model.graph.output if not one.type.tensor_type.HasField("shape")]
    if missing:
        inferred = onnx.shape_inference.infer_shapes(model)
        types = {value.name: value.type for value in inferred.graph.output}
        for value in missing:
            value.type.CopyFrom(types[value.name])
    return bool(missing) or was_unsorted


def require_data_beside(model: onnx.ModelProto, path: Path) -> None:
    """Check that the external data of `model` are files in the folder of `path`, or below.

    Tensors may share what is in them, but not without end.

    Raises:
        GraphError: they are something else, which a library would read all the same.
    """
    folder, claimed = path.parent.resolve(), 0
    sizes: dict[Path, int] = {}
    for tensor in _stored_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {one.key: one.value for one in tensor.external_data}
        location = entries.get("location", "")
        try:
            file = Path(folder, location).resolve()
            is_beside = file.is_relative_to(folder) and file.is_file()
            sizes[file] = file.stat().st_size if is_beside else 0
            claimed += int(entries.get("length") or sizes[file])
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
            is_beside = False
        if not is_beside:
            raise GraphError(
                f"{visible(str(path))}: the data of {one_line(tensor.name)} must be a file in its"
                f" folder, and is {one_line(location)!r}"
            )
    if claimed > MAX_SHARED_DATA * sum(sizes.values()):
        raise GraphError(
            f"{visible(str(path))}: claims {claimed} bytes of external data, and its files have"
            f" {sum(sizes.values())}"
        )


def _stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Weights, and constants in attributes, of all graphs and functions."""
    pending = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while pending or nodes:
        while nodes:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                pending += [attribute.g, *attribute.graphs]
        if pending:
            graph = pending.pop()
            yield from graph.initializer
            nodes += graph.node


def _calls(nodes: object, bodies: object) -> list[_Key]:
    """The functions that `nodes` call, each as often as it is called; in inner graphs too."""
    assert isinstance(bodies, dict)
    found, pending = [], [nodes]
    while pending:
        for node in pending.pop():  # type: ignore[attr-defined]  # a repeated field of protobuf
            if (node.domain, node.op_type) in bodies:
                found.append((node.domain, node.op_type))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g.node)
                pending += [inner.node for inner in attribute.graphs]
    return found


def _read_tensors(node: gs.Node) -> Iterator[gs.Tensor]:
    """What `node` reads, and what the graphs inside it read from outside."""
    yield from node.inputs
    for graph in inner_graphs(node):
        for inner in all_nodes(graph):
            yield from inner.inputs
        yield from graph.outputs
