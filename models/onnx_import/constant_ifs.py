"""An If whose condition does not depend on pixels becomes the branch that is taken.

PyTorch's `squeeze(1)` and scripted torchvision write such: the condition asks for a side of a tensor.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from reptrt.models.inputs import Feed
from reptrt.models.onnx_import.data import OnnxFileError, list_graphs
from reptrt.models.onnx_import.pieces import pixel_tensors
from reptrt.models.onnx_import.values import run_onnx


def fold_once(proto: onnx.ModelProto, feed: Feed) -> onnx.ModelProto | None:
    """Copy of `proto` without such Ifs of the top level; None where there is none.

    Args:
        proto: runs on `feed`.
        feed: one batch.
    """
    graph = proto.graph
    if not any(node.op_type == "If" for node in graph.node):
        return None
    pixels = pixel_tensors(gs.import_onnx(proto))
    ifs = [n for n in graph.node if n.op_type == "If" and n.input[0] not in pixels]
    if not ifs:
        return None
    known = {t.name: bool(numpy_helper.to_array(t).any()) for t in graph.initializer}
    asked = list(dict.fromkeys(n.input[0] for n in ifs if n.input[0] not in known))
    if asked:
        try:
            (values,) = run_onnx(proto, asked, [feed])
        except OnnxFileError:
            return None  # said with more context when the whole is run
        known |= {name: bool(np.any(value)) for name, value in values.items()}
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    nodes: list[onnx.NodeProto] = []
    for node in copied.graph.node:
        is_folded = node.op_type == "If" and node.input[0] in known and node.input[0] not in pixels
        nodes += _taken(copied.graph, node, known[node.input[0]]) if is_folded else [node]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copied.graph.node[:]
    copied.graph.node.extend(kept)
    return copied


def _taken(graph: onnx.GraphProto, node: onnx.NodeProto, condition: bool) -> list[onnx.NodeProto]:
    """Nodes of the branch, with names of their own and the outputs of the If."""
    wanted = "then_branch" if condition else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
    stem = node.name or node.output[0]
    local = {t.name for t in branch.initializer}
    local |= {name for inner in branch.node for name in inner.output if name}
    names = {name: f"{stem}/{name}" for name in local}
    for tensor in branch.initializer:
        copied = onnx.TensorProto()
        copied.CopyFrom(tensor)
        copied.name = names[tensor.name]
        graph.initializer.append(copied)
    nodes = []
    for inner in branch.node:
        made = onnx.NodeProto()
        made.CopyFrom(inner)
        rename(made, names)
        made.output[:] = [names.get(name, name) for name in inner.output]
        nodes.append(made)
    for value, name in zip(branch.output, node.output, strict=True):
        source = names.get(value.name, value.name)
        nodes.append(onnx.helper.make_node("Identity", [source], [name], f"{stem}/{name}"))
    return nodes


def rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Let `node`, and what it holds, read tensors by their new names."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for graph in list_graphs(attribute.g):
                for inner in graph.node:
                    inner.input[:] = [names.get(name, name) for name in inner.input]
