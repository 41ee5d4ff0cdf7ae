"""A checked ONNX file as the plain graph that can become a PyTorch module.

What does not depend on pixels (weights behind Casts and Transposes, shapes, positions) is computed
by ONNX Runtime and becomes constant: for one image and for two, which shows what grows with the
batch. Floats of other widths become float32, and the input [N, 3, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.inputs import Feed, NetworkInput, random_feed
from reptrt.models.onnx_import.constant_ifs import fold_once
from reptrt.models.onnx_import.constant_loops import unroll_once
from reptrt.models.onnx_import.constant_sequences import write_sequences
from reptrt.models.onnx_import.data import list_graphs, list_tensors
from reptrt.models.onnx_import.file_inputs import OnnxFile
from reptrt.models.onnx_import.for_tensorrt import write_for_tensorrt
from reptrt.models.onnx_import.freeze import freeze
from reptrt.models.onnx_import.infinite_pads import absorb_infinite_pads
from reptrt.models.onnx_import.layers import HANDLED
from reptrt.models.onnx_import.modulated import unmodulate
from reptrt.models.onnx_import.small_recurrent import widen_small_recurrent
from reptrt.models.onnx_import.upgrade import inline_newer
from reptrt.models.onnx_import.values import BATCH, infer_shapes

_WIDE = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_CONSTANTS: dict[str, type] = {
    "value_int": np.int64, "value_ints": np.int64, "value_float": np.float32,
    "value_floats": np.float32,
}  # fmt: skip
_AXES_ARE_READ = 13  # first opset whose Squeeze has its axes as an input
_MOVING = {
    "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_FLOAT_TYPES = (TensorProto.FLOAT, np.float32, np.dtype(np.float32))


@dataclass(frozen=True)
class CanonicalGraph:
    """A graph of operators of images, with everything else constant.

    Attributes:
        graph: What it reads is as `inputs` say; every node has a name of its own.
        reference: The same network before, in float32, for ONNX Runtime.
        roots: Name of a constant -> name of the weight that it is made of.
        shapes: Tensor -> its shape for one image (or the fixed batch).
        batch_size: N where the graph does not allow any; None where it does.
        opset: Of the operators.
        inputs: What it reads, by the names of the graph, in order.
        fixed_because: What fixes the batch.
    """

    graph: gs.Graph
    reference: onnx.ModelProto
    roots: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    batch_size: int | None
    opset: int
    inputs: tuple[NetworkInput, ...]
    fixed_because: str = ""


def canonicalize(file: OnnxFile, inputs: Sequence[NetworkInput]) -> CanonicalGraph:
    """Make `file` canonical for `inputs`, which are those of the engine, in the file's order.

    Raises:
        OnnxFileError: ONNX Runtime cannot run it, or a tensor in it is too large.
    """
    graph = gs.import_onnx(_promote(inline_newer(file.proto, HANDLED)))
    own = tuple(replace(one, name=read.name) for one, read in zip(inputs, file.inputs, strict=True))
    _state_inputs(graph, file, own)
    sort_nodes(graph.cleanup())
    infer_shapes(graph, file.batch or 1)  # what is too large is said before anything runs
    one = random_feed(own, file.batch or 1)
    graph = gs.import_onnx(_without_control_flow(gs.export_onnx(graph), one))
    _unpack_constants(graph)
    name_nodes(graph)
    _read_outputs(graph)
    sort_nodes(graph.cleanup())
    graph = write_sequences(graph, file.batch or 1)
    graph = unmodulate(graph, one, file.batch or 1)
    roots = _find_roots(graph)
    roots |= {f"{name}_frozen": root for name, root in roots.items()}
    frozen = freeze(graph, own, file)
    graph = sort_nodes(frozen.graph.cleanup())
    shapes = infer_shapes(graph, frozen.batch_size or 1)
    shapes |= {name: value.shape for name, value in frozen.seen.items()}
    changed = widen_small_recurrent(graph) + absorb_infinite_pads(graph)
    if not any(one.open_sides for one in own):
        changed += write_for_tensorrt(graph, shapes)
    if changed:
        graph = sort_nodes(graph.cleanup())
        shapes |= infer_shapes(graph, frozen.batch_size or 1)
    return CanonicalGraph(
        graph, frozen.reference, roots, shapes, frozen.batch_size, graph.opset, own, frozen.reason
    )


def _without_control_flow(proto: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """Ifs and Loops that no pixel decides, as what they come to on `feed`."""
    while True:
        plain = fold_once(proto, feed) or unroll_once(proto, feed)
        if plain is None:
            return proto
        proto = plain


def _promote(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy with float32 in the place of other floats, and without stated shapes."""
    promoted = onnx.ModelProto()
    promoted.CopyFrom(proto)
    for tensor in list_tensors(promoted.graph):
        if tensor.data_type in _WIDE:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for graph in list_graphs(promoted.graph):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i in _WIDE:
                    attribute.i = TensorProto.FLOAT
        for value in [*graph.input, *graph.output]:
            if value.type.tensor_type.elem_type in _WIDE:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        del graph.value_info[:]
    return promoted


def _unpack_constants(graph: gs.Graph) -> None:
    """Make a weight of what every Constant holds."""
    for node in graph.nodes:
        if node.op == "Constant":
            ((key, value),) = node.attrs.items()
            values = value.values if key == "value" else np.array(value, _CONSTANTS[key])
            (output,) = node.outputs
            node.outputs.clear()
            output.to_constant(values)


def name_nodes(graph: gs.Graph) -> None:
    """Give every node a name of its own: the file's, else its operator's, numbered if need be."""
    counts: dict[str, int] = {}
    taken = {node.name for node in graph.nodes}
    for node in graph.nodes:
        name = node.name or node.op
        count = counts.get(name, 0)
        counts[name] = count + 1
        candidate = name if count == 0 else f"{name}_{count}"
        while candidate != node.name and candidate in taken:
            counts[name] += 1
            candidate = f"{name}_{counts[name]}"
        node.name = candidate
        taken.add(candidate)


def _state_inputs(graph: gs.Graph, file: OnnxFile, inputs: Sequence[NetworkInput]) -> None:
    """Give the inputs their types and sides; the image that is the only one is [N, channels, H, W]."""
    tensors = {tensor.name: tensor for tensor in graph.inputs}
    graph.inputs = [tensors[one.name] for one in inputs]
    for one, tensor in zip(inputs, graph.inputs, strict=True):
        tensor.dtype = np.dtype(one.dtype)
        tensor.shape = [BATCH, *one.sides] if one.batched else list(one.sides)
    if file.is_of_one_image:
        turn_image(graph, file)


def turn_image(graph: gs.Graph, file: OnnxFile) -> None:
    """Compute from [N, channels, H, W] float32 what the file wants instead."""
    images = graph.inputs[0]
    readers = list(images.outputs)
    source = images
    if file.channels_last:
        inner = gs.Variable(f"{images.name}_channels_last", np.float32)
        attrs = {"perm": [0, 2, 3, 1]}
        graph.nodes.insert(
            0, gs.Node("Transpose", f"{inner.name}_transpose", attrs, [source], [inner])
        )
        source = inner
    if file.inputs[0].bare:
        source = _first_picture(graph, source)
    if source is not images:
        for node in readers:
            node.inputs = [source if tensor is images else tensor for tensor in node.inputs]
    if file.raw_type is not None:
        _cast_pixels(graph, source, readers, file.raw_type)


def _first_picture(graph: gs.Graph, source: gs.Tensor) -> gs.Tensor:
    """The only picture of a batch."""
    picture, has_input = (
        gs.Variable(f"{source.name}_picture", source.dtype),
        graph.opset >= _AXES_ARE_READ,
    )
    axes = [gs.Constant(f"{picture.name}_axes", np.zeros(1, np.int64))] if has_input else []
    attrs = {} if has_input else {"axes": [0]}
    squeeze = gs.Node("Squeeze", f"{picture.name}_squeeze", attrs, [source, *axes], [picture])
    graph.nodes.insert(0, squeeze)
    return picture


def _cast_pixels(
    graph: gs.Graph, pixels: gs.Tensor, readers: Sequence[gs.Node], raw_type: int
) -> None:
    """Give `readers` of float `pixels` the type that the file takes; what casts or only moves them needs none.

    TensorRT has uint8 at the borders of a network alone.
    """
    outputs = {tensor.name for tensor in graph.outputs}
    raw = []
    for node in readers:
        if node.op == "Cast":
            if node.attrs["to"] in _FLOAT_TYPES:
                node.op, node.attrs = "Identity", {}
        elif (
            node.op in _MOVING and node.inputs[0] is pixels and node.outputs[0].name not in outputs
        ):
            node.outputs[0].dtype = np.dtype(np.float32)
            _cast_pixels(graph, node.outputs[0], list(node.outputs[0].outputs), raw_type)
        else:
            raw.append(node)
    if not raw:
        return
    cast = gs.Variable(f"{pixels.name}_pixels", onnx.helper.tensor_dtype_to_np_dtype(raw_type))
    for node in raw:
        node.inputs = [cast if tensor is pixels else tensor for tensor in node.inputs]
    maker = gs.Node("Cast", f"{cast.name}_cast", {"to": raw_type}, [pixels], [cast])
    graph.nodes.insert(0, maker)


def _read_outputs(graph: gs.Graph) -> None:
    """Let what reads a tensor that an Identity makes an output read that output: it has one name then."""
    outputs = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op == "Identity" and node.outputs[0].name in outputs:
            source, output = node.inputs[0], node.outputs[0]
            if source.name in outputs or not source.inputs:
                continue
            for reader in [reader for reader in source.outputs if reader is not node]:
                reader.inputs = [output if t is source else t for t in reader.inputs]


def _find_roots(graph: gs.Graph) -> dict[str, str]:
    """Constant, or tensor made of constants -> the first weight that it is made of."""
    roots = {
        tensor.name: tensor.name
        for tensor in graph.tensors().values()
        if isinstance(tensor, gs.Constant)
    }
    for node in graph.nodes:
        source = next((roots[t.name] for t in node.inputs if t.name in roots), None)
        if source is not None and all(t.name in roots for t in node.inputs if t.name):
            roots.update({tensor.name: source for tensor in node.outputs})
    return roots
