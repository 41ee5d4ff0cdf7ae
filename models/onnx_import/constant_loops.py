"""A Loop whose number of rounds does not depend on pixels becomes that many copies of its body.

TensorFlow resizes the images of a batch in such a loop, and decoders of text run a fixed number of steps.
Only loops that hold weighted layers, or have some behind them, are worth it: others stay with the tail.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from reptrt.models.inputs import Feed
from reptrt.models.onnx_import.constant_ifs import rename
from reptrt.models.onnx_import.data import OnnxFileError, list_graphs
from reptrt.models.onnx_import.pieces import pixel_tensors
from reptrt.models.onnx_import.values import run_onnx

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"}
_MOST_ROUNDS, _MOST_NODES = 64, 5000
_AXES_ARE_READ = 13  # first opset whose Unsqueeze has its axes as an input


def unroll_once(proto: onnx.ModelProto, feed: Feed) -> onnx.ModelProto | None:
    """Copy of `proto` without the first such Loop of the top level; None where there is none.

    Args:
        proto: runs on `feed`.
        feed: one batch.
    """
    loops = [node for node in proto.graph.node if node.op_type == "Loop"]
    if not loops:
        return None
    pixels = pixel_tensors(gs.import_onnx(proto))
    for loop in loops:
        if not pixels.isdisjoint(loop.input[:2]) or not _leads_to_layers(proto.graph, loop):
            continue
        rounds = _count_rounds(proto, loop, pixels, feed)
        if rounds and rounds <= _MOST_ROUNDS and rounds * len(_body(loop).node) <= _MOST_NODES:
            return _unroll(proto, loop, rounds)
    return None


def _body(loop: onnx.NodeProto) -> onnx.GraphProto:
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert isinstance(body, onnx.GraphProto)
    return body


def _leads_to_layers(graph: onnx.GraphProto, loop: onnx.NodeProto) -> bool:
    """Whether weighted layers are in `loop`, or read what it makes."""
    inside = (node.op_type for part in list_graphs(_body(loop)) for node in part.node)
    if not _LAYERS.isdisjoint(inside):
        return True
    behind = set(loop.output)
    for node in graph.node:
        if not behind.isdisjoint(node.input):
            if node.op_type in _LAYERS:
                return True
            behind.update(node.output)
    return False


def _count_rounds(
    proto: onnx.ModelProto, loop: onnx.NodeProto, pixels: set[str], feed: Feed
) -> int | None:
    """How often the loop runs on `feed`; None where pixels decide that."""
    body = _body(loop)
    counting = _without_pixels(loop, pixels)
    if body.output[0].name not in counting:
        return None
    reduced, wanted = onnx.ModelProto(), f"{loop.output[0]}/rounds"
    reduced.CopyFrom(proto)
    (node,) = (one for one in reduced.graph.node if one.output == loop.output)
    graph, carried = _body(node), len(loop.input) - 2
    kept = [i for i in range(carried) if graph.output[1 + i].name in counting]
    inputs = [graph.input[0], graph.input[1], *(graph.input[2 + i] for i in kept)]
    outputs = [graph.output[0], *(graph.output[1 + i] for i in kept)]
    number = helper.make_tensor_value_info(f"{wanted}/number", TensorProto.INT64, None)
    nodes = [one for one in graph.node if set(one.output) <= counting]
    nodes.append(helper.make_node("Identity", [graph.input[0].name], [number.name]))
    smaller = helper.make_graph(nodes, graph.name, inputs, [*outputs, number], graph.initializer)
    start = [*loop.input[:2], *(loop.input[2 + i] for i in kept)]
    made = [*(f"{wanted}/{i}" for i in kept), wanted]
    at = list(proto.graph.node).index(loop)
    before = list(reduced.graph.node)[:at]
    counted = helper.make_graph(
        [*before, helper.make_node("Loop", start, made, body=smaller)], "rounds",
        list(reduced.graph.input), [onnx.ValueInfoProto(name=wanted)], reduced.graph.initializer,
    )  # fmt: skip
    reduced.graph.CopyFrom(counted)
    try:
        (found,) = run_onnx(reduced, [wanted], [feed])
    except OnnxFileError:
        return None  # said with more context when the whole is run
    return len(found[wanted])


def _without_pixels(loop: onnx.NodeProto, pixels: set[str]) -> set[str]:
    """Tensors of the body that do not depend on pixels, in whatever round."""
    body, carried = _body(loop), len(loop.input) - 2
    seen = {body.input[2 + i].name for i in range(carried) if loop.input[2 + i] in pixels}
    while True:
        found = set(seen)
        for node in body.node:
            read = set(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    inner = (one for part in list_graphs(attribute.g) for one in part.node)
                    read.update(name for one in inner for name in one.input)
            if read & (found | pixels):
                found.update(node.output)
        more = {body.input[2 + i].name for i in range(carried) if body.output[1 + i].name in found}
        if more <= seen:
            names = {name for node in body.node for name in node.output}
            names |= {value.name for value in body.input} | {t.name for t in body.initializer}
            return names - found
        seen |= more


def _unroll(proto: onnx.ModelProto, loop: onnx.NodeProto, rounds: int) -> onnx.ModelProto:
    """Copy of `proto` with `rounds` copies of the body in the place of `loop`."""
    unrolled = onnx.ModelProto()
    unrolled.CopyFrom(proto)
    graph, body, carried = unrolled.graph, _body(loop), len(loop.input) - 2
    nodes: list[onnx.NodeProto] = []
    current = list(loop.input[2:])
    scans: list[list[str]] = [[] for _ in range(len(body.output) - 1 - carried)]
    for number in range(rounds):
        made = _one_round(graph, loop, number, current)
        nodes += made[0]
        current, rows = made[1][1 : 1 + carried], made[1][1 + carried :]
        for scan, row in zip(scans, rows, strict=True):
            nodes.append(_as_row(unrolled, row, f"{row}/row{len(scan)}_{number}"))
            scan.append(nodes[-1].output[0])
    for name, output in zip(current, loop.output, strict=False):
        if output:
            nodes.append(helper.make_node("Identity", [name], [output], f"{output}/last"))
    for scan, output in zip(scans, loop.output[carried:], strict=True):
        if output:
            nodes.append(helper.make_node("Concat", scan, [output], f"{output}/rows", axis=0))
    at = list(proto.graph.node).index(loop)
    before, after = list(graph.node)[:at], list(graph.node)[at + 1 :]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in [*before, *nodes, *after]]
    del graph.node[:]
    graph.node.extend(kept)
    return unrolled


def _one_round(
    graph: onnx.GraphProto, loop: onnx.NodeProto, number: int, current: list[str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Nodes of the body in one round, and the names of its outputs; constants go to `graph`."""
    body, stem = _body(loop), f"{loop.name or loop.output[0]}/{number}"
    local = {t.name for t in body.initializer}
    local |= {name for node in body.node for name in node.output if name}
    names = {name: f"{stem}/{name}" for name in local}
    for value, constant in zip(body.input, (np.int64(number), np.bool_(True)), strict=False):
        names[value.name] = f"{stem}/{value.name}"
        graph.initializer.append(numpy_helper.from_array(np.array(constant), names[value.name]))
    names |= {value.name: name for value, name in zip(body.input[2:], current, strict=True)}
    for tensor in body.initializer:
        copied = onnx.TensorProto()
        copied.CopyFrom(tensor)
        copied.name = names[tensor.name]
        graph.initializer.append(copied)
    nodes = []
    for inner in body.node:
        made = onnx.NodeProto()
        made.CopyFrom(inner)
        rename(made, names)
        made.output[:] = [names.get(name, name) for name in inner.output]
        made.name = f"{stem}/{inner.name or inner.output[0]}"
        nodes.append(made)
    return nodes, [names.get(value.name, value.name) for value in body.output]


def _as_row(proto: onnx.ModelProto, source: str, row: str) -> onnx.NodeProto:
    """An axis of 1 in front of `source`, along which rounds are joined."""
    opset = next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    if opset < _AXES_ARE_READ:
        return helper.make_node("Unsqueeze", [source], [row], row, axes=[0])
    axes = numpy_helper.from_array(np.zeros(1, np.int64), f"{row}/axes")
    proto.graph.initializer.append(axes)
    return helper.make_node("Unsqueeze", [source, axes.name], [row], row)
