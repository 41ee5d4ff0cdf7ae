"""A file that is quantized already, as it is: with the input and the outputs that every engine has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.graph import INPUT_NAME
from reptrt.models.onnx_import.canonical import name_nodes, turn_image
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file_inputs import OnnxFile

_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_WITH_SCALES = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class FloatFile:
    """The float network of a file that is quantized already.

    Attributes:
        file: Of that network, checked.
        keeps_scales: Whether the quantized file stays as it is, or is forgotten.
    """

    file: OnnxFile
    keeps_scales: bool


@dataclass(frozen=True)
class QuantizedFile:
    """A file whose scales stay.

    Attributes:
        model: Serialized: the file with the input `images` [N, channels, H, W] and outputs in float32.
        is_half: Whether its scales are FP16, and with them what is not INT8.
    """

    model: bytes
    is_half: bool


def take_as_is(
    file: OnnxFile,
    image_size: tuple[int, int] | None,
    batch_size: int | None,
    outputs: tuple[str, ...],
) -> QuantizedFile:
    """The file for images of (height, width) `image_size`, with its scales and all else as it is.

    Args:
        file: with scales.
        image_size: of its images.
        batch_size: that it is fixed to; None for any.
        outputs: of its float network.

    Raises:
        OnnxFileError: it has other outputs than its float network.
    """
    if image_size is None or not file.is_of_one_image:
        raise OnnxFileError(
            "is quantized already, and reads something else than one image: give its float model as MODEL"
        ).at(file.path)
    names = [value.name for value in file.proto.graph.output]
    if set(names) != set(outputs):
        raise OnnxFileError(
            f"has the outputs {', '.join(names)}, and its float model {', '.join(outputs)}: they must"
            " have the same names"
        ).at(file.path)
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    del proto.graph.value_info[:]  # for other sizes, maybe
    graph = gs.import_onnx(proto)
    _feed(graph, file, (file.channels, *image_size), batch_size)
    _write_float32(graph)
    name_nodes(graph)
    is_half = any(
        node.inputs[1].dtype == np.float16 for node in graph.nodes if node.op in _WITH_SCALES
    )
    exported = gs.export_onnx(sort_nodes(graph.cleanup()))
    return QuantizedFile(exported.SerializeToString(deterministic=True), is_half)


def _feed(
    graph: gs.Graph, file: OnnxFile, shape: tuple[int, int, int], batch_size: int | None
) -> None:
    """Make the input `images` [N, channels, H, W] float32."""
    (value,) = (one for one in file.proto.graph.input if one.name == file.inputs[0].name)
    images = next(tensor for tensor in graph.inputs if tensor.name == value.name)
    kind = value.type.tensor_type.elem_type
    graph.inputs = [images]
    images.dtype, images.shape = np.float32, [batch_size or "batch", *shape]
    turn_image(graph, replace(file, raw_type=kind) if kind in _OTHER_FLOATS else file)
    if images.name != INPUT_NAME:
        other = graph.tensors().get(INPUT_NAME)
        if other is not None:
            other.name = _fresh(graph, INPUT_NAME)
        images.name = INPUT_NAME


def _write_float32(graph: gs.Graph) -> None:
    """Cast outputs of other float types."""
    for index, output in enumerate(graph.outputs):
        if output.dtype in (np.float16, np.float64):
            inner, name = output, output.name
            inner.name = _fresh(graph, f"{name}_inner")
            outer = gs.Variable(name, np.float32, inner.shape)
            to = {"to": TensorProto.FLOAT}
            graph.nodes.append(gs.Node("Cast", f"{name}_cast", to, [inner], [outer]))
            graph.outputs[index] = outer


def _fresh(graph: gs.Graph, stem: str) -> str:
    """A name that no tensor has."""
    taken, count = graph.tensors(), 1
    while f"{stem}_{count}" in taken:
        count += 1
    return f"{stem}_{count}"
