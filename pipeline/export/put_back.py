"""Put the nodes of islands and of the tail back into an exported file, as they were.

For PyTorch's exporter an island is one operator of this project's domain; afterwards the nodes that it
holds take its place, with their names, in float.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import fx

from reptrt.models.graph import INPUT_NAME
from reptrt.models.onnx_import.data import list_graphs
from reptrt.models.onnx_import.island_op import is_island, read_outputs
from reptrt.models.onnx_import.tail import Tail

_DOMAIN, _ISLAND = "reptrt", "Island"


def mark_islands(module: fx.GraphModule) -> fx.GraphModule:
    """Copy in which every island is an operator that PyTorch's exporter writes as one node."""
    if not any(is_island(node) for node in module.graph.nodes):
        return module
    marked = copy.deepcopy(module)
    for node in marked.graph.nodes:
        if is_island(node):
            node.target = _symbolic
    marked.recompile()
    return marked


def separate_outputs(module: fx.GraphModule) -> fx.GraphModule:
    """Copy in which no output is another one, or an input: PyTorch's exporter gives each tensor one name."""
    separate = copy.deepcopy(module)
    (output,) = separate.graph.find_nodes(op="output")
    seen: set[fx.Node] = set(separate.graph.find_nodes(op="placeholder"))

    def own(value: fx.Node) -> fx.Node:
        if value in seen:
            with separate.graph.inserting_before(output):
                return separate.graph.call_function(torch.ops.aten.clone.default, (value,))
        seen.add(value)
        return value

    output.args = (fx.map_arg(output.args[0], own),)
    separate.recompile()
    return separate


def _symbolic(
    inputs: list[torch.Tensor], model: torch.Tensor, outputs: str, batch: int
) -> list[torch.Tensor]:
    """An island as one node: what it reads, then its own model."""
    stated = read_outputs(outputs)
    made: list[torch.Tensor] = list(
        torch.onnx.ops.symbolic_multi_out(
            f"{_DOMAIN}::{_ISLAND}",
            [*inputs, model],
            dtypes=[getattr(torch, output.dtype) for output in stated],
            shapes=[
                [fixed + each * batch if each else fixed for fixed, each in output.sides]
                for output in stated
            ],
            version=1,
        )
    )
    return made


def put_islands_back(proto: onnx.ModelProto) -> None:
    """Replace every island of `proto` by its nodes, in place."""
    graph = proto.graph
    if not any(node.domain == _DOMAIN for node in graph.node):
        return
    weights = {tensor.name: tensor for tensor in graph.initializer}
    models = {node.input[-1] for node in graph.node if node.domain == _DOMAIN}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != _DOMAIN:
            nodes.append(node)
            continue
        piece = onnx.load_model_from_string(
            numpy_helper.to_array(weights[node.input[-1]]).tobytes()
        )
        inputs = zip((value.name for value in piece.graph.input), node.input[:-1], strict=True)
        outputs = zip((value.name for value in piece.graph.output), node.output, strict=True)
        nodes += _open(proto, piece, {**dict(inputs), **dict(outputs)}, nodes)
    _replace(graph.node, nodes)
    _replace(graph.initializer, [t for t in graph.initializer if t.name not in models])
    _replace(graph.value_info, [v for v in graph.value_info if v.name not in models])
    _replace(proto.opset_import, [e for e in proto.opset_import if e.domain != _DOMAIN])


def put_tail_back(
    proto: onnx.ModelProto, tail: Tail, inputs: Sequence[str] = (INPUT_NAME,)
) -> None:
    """Let `tail` follow a network that reads `inputs` and returns what is at the cut, in place."""
    graph = proto.graph
    piece = onnx.load_model_from_string(tail.model)
    known = {value.name: value for value in graph.output}
    names = {name: name for name in (*tail.inputs, *tail.outputs)}
    names |= dict(zip(tail.sources, inputs, strict=True))
    _free_names(graph, {*tail.outputs} - known.keys() - set(inputs))
    nodes = _open(proto, piece, names)
    made = {value.name: value for value in piece.graph.output}
    graph.node.extend(nodes)
    _replace(graph.output, [known.get(name) or made[name] for name in tail.outputs])
    present = {value.name for value in graph.value_info}
    graph.value_info.extend(
        value for name, value in known.items() if name not in tail.outputs and name not in present
    )


def _free_names(graph: onnx.GraphProto, wanted: Collection[str]) -> None:
    """Rename the tensors in the middle of `graph` that have the names `wanted`."""
    held = [graph.initializer, graph.value_info]
    taken = {one.name for field in (*held, graph.input, graph.output) for one in field}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    renamed: dict[str, str] = {}
    for name in sorted(taken.intersection(wanted)):
        renamed[name] = _fresh(name, taken)
        taken.add(renamed[name])
    _rename(graph.node, renamed)
    for node in graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for one in (one for field in held for one in field):
        one.name = renamed.get(one.name, one.name)


def _open(
    proto: onnx.ModelProto,
    piece: onnx.ModelProto,
    names: Mapping[str, str],
    opened: Sequence[onnx.NodeProto] = (),
) -> list[onnx.NodeProto]:
    """Nodes of `piece` with tensors that `proto` and the nodes `opened` do not have yet.

    Its weights go to `proto`.
    """
    graph = proto.graph
    taken = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    taken |= {name for node in (*graph.node, *opened) for name in (*node.input, *node.output)}
    node_names = {node.name for node in (*graph.node, *opened)}
    renamed = dict(names)
    local = [t.name for t in piece.graph.initializer]
    local += [name for node in piece.graph.node for name in node.output if name]
    for name in local:
        if name not in renamed:
            renamed[name] = _fresh(name, taken)
            taken.add(renamed[name])
    for tensor in piece.graph.initializer:
        tensor.name = renamed[tensor.name]
        graph.initializer.append(tensor)
    for node in piece.graph.node:
        _rename([node], renamed)
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.name = _fresh(node.name or node.op_type, node_names)
        node_names.add(node.name)
    known = {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(
        entry for entry in piece.opset_import if entry.domain not in known | {"ai.onnx"}
    )
    return list(piece.graph.node)


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Let nodes, and the graphs that they hold, read tensors by their new names."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for graph in list_graphs(attribute.g):
                    for inner in graph.node:
                        inner.input[:] = [names.get(name, name) for name in inner.input]
                    for value in graph.output:
                        value.name = names.get(value.name, value.name)


def _fresh(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _replace(field: object, values: Iterable[object]) -> None:
    """Put `values` in the place of what a repeated field of protobuf holds."""
    kept = list(values)
    copies = [type(value).FromString(value.SerializeToString()) for value in kept]  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
