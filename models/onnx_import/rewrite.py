"""Rewrites of a canonical ONNX graph: what onnx2torch and `torch.export` need said plainly.

Decomposed LayerNorms become one node, products with constants linear layers, automatic and one-sided
padding explicit, sizes of resizing numbers. Layers get the names that reports show: of their weight,
else of their node.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from torch import nn

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.canonical import CanonicalGraph
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.layers import HANDLED
from reptrt.models.onnx_import.operators import DOMAIN
from reptrt.models.onnx_import.padding import cannot, pad
from reptrt.models.onnx_import.pieces import is_own
from reptrt.models.onnx_import.recompose import recompose_norms

Array = NDArray[Any]
_LAYERS = {
    "Linear", "Conv", "ConvTranspose", "BatchNormalization", "LayerNormalization",
    "GroupNormalization", "InstanceNormalization",
}  # fmt: skip
_OLD_SOFTMAX = 13
_COORDINATES = 11
_NEWEST_OF_ONNX2TORCH = 17


def rewrite(canonical: CanonicalGraph) -> dict[str, str]:
    """Rewrite `canonical.graph` in place.

    Returns:
        Tensor -> why the node that makes it cannot be imported; the graph means nothing then.
    """
    graph = canonical.graph
    recompose_norms(canonical)
    refused: dict[str, str] = {}
    for node in list(graph.nodes):
        rule = _RULES.get(node.op)
        if rule is not None and not is_own(node):
            output = node.outputs[0].name
            try:
                rule(canonical, node)
            except OnnxFileError as error:
                refused[output] = str(error)
    if not refused:
        sort_nodes(graph.cleanup())
    return refused


def to_onnx2torch(canonical: CanonicalGraph) -> onnx.ModelProto:
    """The graph for onnx2torch: own operators in their domain, one operator behind every output."""
    graph = canonical.graph
    for index, tensor in enumerate(list(graph.outputs)):
        last = gs.Variable(f"reptrt_output_{index}", np.float32, None)
        graph.nodes.append(gs.Node("Identity", last.name, inputs=[tensor], outputs=[last]))
        graph.outputs[index] = last
    for node in graph.nodes:
        if node.op in HANDLED:
            node.domain = DOMAIN
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor.name in canonical.shapes:
            tensor.shape = list(canonical.shapes[tensor.name])
    proto: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    del proto.opset_import[:]
    version = min(canonical.opset, _NEWEST_OF_ONNX2TORCH)
    foreign = {node.domain for node in proto.graph.node} - {"", "ai.onnx", DOMAIN}
    proto.opset_import.extend(
        [onnx.helper.make_opsetid("", version), onnx.helper.make_opsetid(DOMAIN, 1)]
        + [onnx.helper.make_opsetid(domain, 1) for domain in sorted(foreign)]
    )
    return proto


def layer_paths(canonical: CanonicalGraph) -> dict[str, str]:
    """Node name -> dotted path of its module: all different, none inside another."""
    nodes = canonical.graph.nodes
    stems = {node.name: _stem(node, canonical.roots) for node in nodes}
    shared = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    paths: dict[str, str] = {}
    taken: set[str] = set()  # paths, and what is above them
    for node in nodes:
        stem = stems[node.name]
        wanted = _attribute_path(node.name if stem in shared else stem, node.op)
        path, count = wanted, 1
        while _is_taken(path, taken, paths.values()):
            count += 1
            path = f"{wanted.replace('.', '_')}_{count}" if count > 9 else f"{wanted}_{count}"
        paths[node.name] = path
        parts = path.split(".")
        taken.update(".".join(parts[: end + 1]) for end in range(len(parts)))
    return paths


def _is_taken(path: str, taken: set[str], used: object) -> bool:
    parts = path.split(".")
    above = {".".join(parts[:end]) for end in range(1, len(parts))}
    return path in taken or not above.isdisjoint(used)  # type: ignore[arg-type]


def _stem(node: gs.Node, roots: Mapping[str, str]) -> str:
    """`stem.conv` of a layer whose weight is called `stem.conv.weight`; else the node's name."""
    if node.op not in _LAYERS:
        return str(node.name)
    for tensor in node.inputs[1:]:
        root = roots.get(tensor.name, "") if isinstance(tensor, gs.Constant) else ""
        stem, _, last = root.rpartition(".")
        if stem and last in ("weight", "bias"):
            return stem
    return str(node.name)


def _attribute_path(name: str, op: str) -> str:
    parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./]", name)]
    legal = [
        f"{part}_" if hasattr(nn.Module, part) or part == "training" or keyword.iskeyword(part)
        else part
        for part in parts if part
    ]  # fmt: skip
    return ".".join(legal)[:200].rstrip(".") or op


def _linear(canonical: CanonicalGraph, node: gs.Node) -> None:
    """A product with a constant matrix, and the bias that follows it, as one layer."""
    weight, gemm = node.inputs[1], node.op == "Gemm"
    if not isinstance(weight, gs.Constant) or weight.values.ndim != 2:
        return
    if weight.values.dtype != np.float32 or node.attrs.get("transA", 0):
        return
    matrix = weight.values if node.attrs.get("transB", 0) else weight.values.T
    adder = None if gemm else _adder_behind(node, len(matrix))
    added = adder.inputs if adder is not None else node.inputs[2:]
    bias = next((tensor for tensor in added if isinstance(tensor, gs.Constant)), None)
    if gemm and len(node.inputs) > 2 and (bias is None or not _is_bias(bias, len(matrix))):
        return
    alpha, beta = (np.float32(node.attrs.get(key, 1)) for key in ("alpha", "beta"))
    node.op, node.attrs = "Linear", {}
    node.inputs = [node.inputs[0], _derive(canonical, weight, node, "weight", alpha * matrix)]
    if bias is not None:
        values = beta * np.broadcast_to(bias.values.reshape(-1), len(matrix))
        node.inputs.append(_derive(canonical, bias, node, "bias", values))
    if adder is not None:
        output = adder.outputs[0]
        adder.outputs.clear()
        node.outputs = [output]


def _adder_behind(node: gs.Node, width: int) -> gs.Node | None:
    """The Add that alone reads `node` and gives it a bias."""
    output = node.outputs[0]
    if len(output.outputs) != 1 or output.outputs[0].op != "Add" or output.outputs[0] is None:
        return None
    adder = output.outputs[0]
    constants = [tensor for tensor in adder.inputs if isinstance(tensor, gs.Constant)]
    return adder if constants and _is_bias(constants[0], width) else None


def _is_bias(tensor: gs.Constant, width: int) -> bool:
    """Whether `tensor` adds to the last axis alone."""
    shape = tensor.values.shape
    return tensor.values.size in (1, width) and (not shape or shape[-1] == tensor.values.size)


def _derive(
    canonical: CanonicalGraph, source: gs.Constant, node: gs.Node, role: str, values: Array
) -> gs.Constant:
    """A constant made of `source`, which stays its root."""
    made = gs.Constant(f"{node.name}_reptrt_{role}", np.ascontiguousarray(values, np.float32))
    if source.name in canonical.roots:
        canonical.roots[made.name] = canonical.roots[source.name]
    return made


def _power(canonical: CanonicalGraph, node: gs.Node) -> None:
    exponent = node.inputs[1]
    if isinstance(exponent, gs.Constant) and exponent.values.size == 1:
        node.op = "Power"


def _constant_indices(canonical: CanonicalGraph, node: gs.Node) -> None:
    if not isinstance(node.inputs[1], gs.Constant):
        raise cannot(node, "takes elements at places that depend on pixels")


def _constant_operands(canonical: CanonicalGraph, node: gs.Node) -> None:
    for tensor in node.inputs[1:]:
        if tensor.name and not isinstance(tensor, gs.Constant):
            raise cannot(node, "has a size, place or parameter that depends on pixels")


def _resize(canonical: CanonicalGraph, node: gs.Node) -> None:
    """State sizes before and after; batch and channels must stay."""
    _constant_operands(canonical, node)
    if canonical.opset < _COORDINATES and node.op == "Resize":
        node.attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    before, after = (canonical.shapes.get(t.name, ()) for t in (node.inputs[0], node.outputs[0]))
    if len(before) < 3 or len(before) != len(after) or before[:2] != after[:2]:
        raise cannot(node, "resizes batch or channels, or to a size that ONNX cannot tell")
    node.attrs["source_size"], node.attrs["target_size"] = list(before[2:]), list(after[2:])
    if any(one.open_sides for one in canonical.inputs):
        node.attrs["factors"] = [float(b / a) for a, b in zip(before[2:], after[2:], strict=True)]
    node.inputs = node.inputs[:1]


def _weighted(canonical: CanonicalGraph, node: gs.Node) -> None:
    """A convolution whose weights are constants."""
    if not all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name):
        raise cannot(node, "has weights that depend on pixels")
    node.inputs = [tensor for tensor in node.inputs if tensor.name]
    pad(canonical, node)


def _softmax(canonical: CanonicalGraph, node: gs.Node) -> None:
    """Before opset 13, a softmax over all axes from one on."""
    rank = len(canonical.shapes.get(node.inputs[0].name, ()))
    if canonical.opset >= _OLD_SOFTMAX:
        node.attrs.setdefault("axis", -1)
        return
    axis = node.attrs.setdefault("axis", 1)
    if not rank or axis % rank == 0:
        raise cannot(node, "runs over the images of a batch")
    node.attrs["flatten"] = int(axis % rank != rank - 1)


def _dropout(canonical: CanonicalGraph, node: gs.Node) -> None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and not (isinstance(training, gs.Constant) and not training.values):
        raise cannot(node, "is in training mode: export the model in evaluation mode")
    node.inputs, node.outputs = node.inputs[:1], node.outputs[:1]


def _single_output(canonical: CanonicalGraph, node: gs.Node) -> None:
    _constant_operands(canonical, node)
    if any(tensor.outputs for tensor in node.outputs[1:]):
        raise cannot(node, "computes statistics of the batch: export in evaluation mode")
    node.outputs = node.outputs[:1]


def _max_pool(canonical: CanonicalGraph, node: gs.Node) -> None:
    if any(tensor.outputs for tensor in node.outputs[1:]):
        raise cannot(node, "tells where its largest values are")
    node.outputs = node.outputs[:1]
    pad(canonical, node)


def _top_k(canonical: CanonicalGraph, node: gs.Node) -> None:
    _constant_operands(canonical, node)
    if any(tensor.outputs for tensor in node.outputs[1:]):
        raise cannot(node, "tells where its largest values are, and equal ones have several places")


def _prelu(canonical: CanonicalGraph, node: gs.Node) -> None:
    """Slopes of the channels of [N, C], written as for images."""
    _constant_operands(canonical, node)
    slope, shape = node.inputs[1].values, canonical.shapes.get(node.inputs[0].name, ())
    if len(shape) == 2 and slope.shape == shape[1:]:
        node.inputs[1] = _derive(canonical, node.inputs[1], node, "slope", slope.reshape(-1, 1, 1))


_RULES: dict[str, Callable[[CanonicalGraph, gs.Node], None]] = {
    "MatMul": _linear,
    "Gemm": _linear,
    "Pow": _power,
    "Gather": _constant_indices,
    "Resize": _resize,
    "Upsample": _resize,
    "Conv": _weighted,
    "ConvTranspose": _weighted,
    "MaxPool": _max_pool,
    "AveragePool": pad,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "PRelu": _prelu,
    "TopK": _top_k,
    "Dropout": _dropout,
    "BatchNormalization": _single_output,
    "LayerNormalization": _single_output,
    **dict.fromkeys(
        (
            "Reshape", "Expand", "Slice", "Split", "Squeeze", "Unsqueeze", "Pad", "Clip", "Tile",
            "GroupNormalization", "InstanceNormalization", "ReduceMean", "ReduceSum", "ReduceMax",
            "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "CumSum",
        ),
        _constant_operands,
    ),
}  # fmt: skip
