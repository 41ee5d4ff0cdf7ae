"""A checked ONNX file as the plain graph that can become a PyTorch module.

What does not depend on pixels (weights behind Casts and Transposes, shapes, positions) is computed
by ONNX Runtime and becomes constant: for one image and for two, which shows what grows with the
batch. Floats of other widths become float32, and the input [N, 3, H, W].
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.data import OnnxFileError, list_tensors
from reptrt.models.onnx_import.file import OnnxFile
from reptrt.models.onnx_import.values import infer_shapes, run_onnx

logger = logging.getLogger(__name__)

Array = NDArray[Any]
_WIDE = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_CONSTANTS: dict[str, type] = {
    "value_int": np.int64, "value_ints": np.int64, "value_float": np.float32,
    "value_floats": np.float32,
}  # fmt: skip
_BATCH_TOLERANCE = 1e-3


class _FixedBatchError(Exception):
    """The graph computes something else for two images than twice the same."""


@dataclass(frozen=True)
class CanonicalGraph:
    """A graph of operators of images, with everything else constant.

    Attributes:
        graph: Its input is [N, 3, H, W] float32; every node has a name of its own.
        reference: The same network before, in float32, for ONNX Runtime.
        roots: Name of a constant -> name of the weight that it is made of.
        shapes: Tensor -> its shape for one image (or the fixed batch).
        batch_size: N where the graph does not allow any; None where it does.
        opset: Of the operators.
    """

    graph: gs.Graph
    reference: onnx.ModelProto
    roots: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    batch_size: int | None
    opset: int


def canonicalize(file: OnnxFile, image_size: tuple[int, int]) -> CanonicalGraph:
    """Make `file` canonical for images of (height, width) `image_size`.

    Raises:
        OnnxFileError: ONNX Runtime cannot run it, or a tensor in it is too large.
    """
    graph = gs.import_onnx(_promote(file.proto))
    _unpack_constants(graph)
    _name_nodes(graph)
    _feed_images(graph, file, image_size)
    sort_nodes(graph.cleanup())
    infer_shapes(graph, file.batch or 1)  # what is too large is said before anything runs
    images = np.random.default_rng(0).random((2, 3, *image_size), dtype=np.float32)
    roots = _find_roots(graph)
    roots |= {f"{name}_frozen": root for name, root in roots.items()}
    graph, reference, batch_size, seen = _freeze(graph, images, file)
    sort_nodes(graph.cleanup())
    shapes = infer_shapes(graph, batch_size or 1) | {name: seen[name].shape for name in seen}
    return CanonicalGraph(graph, reference, roots, shapes, batch_size, graph.opset)


def pixel_tensors(graph: gs.Graph) -> set[str]:
    """Names of the tensors that depend on pixels, not only on their number."""
    found = {graph.inputs[0].name}
    for node in graph.nodes:
        reads = any(tensor.name in found for tensor in node.inputs)
        if reads and node.op not in ("Shape", "Size"):
            found.update(tensor.name for tensor in node.outputs if tensor.name)
    return found


def _promote(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Copy with float32 in the place of other floats, and without stated shapes."""
    promoted = onnx.ModelProto()
    promoted.CopyFrom(proto)
    graph = promoted.graph
    for tensor in list_tensors(graph):
        if tensor.data_type in _WIDE:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
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


def _name_nodes(graph: gs.Graph) -> None:
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


def _feed_images(graph: gs.Graph, file: OnnxFile, image_size: tuple[int, int]) -> None:
    """Make the input [N, 3, H, W] float32; a Transpose follows where the file wants channels last."""
    images = next(tensor for tensor in graph.inputs if tensor.name == file.input_name)
    graph.inputs = [images]
    images.dtype, images.shape = np.float32, ["N", 3, *image_size]
    if not file.channels_last:
        return
    inner = gs.Variable(f"{images.name}_channels_last", np.float32)
    for node in list(images.outputs):
        node.inputs = [inner if tensor is images else tensor for tensor in node.inputs]
    name = f"{inner.name}_transpose"
    graph.nodes.insert(
        0, gs.Node("Transpose", name, {"perm": [0, 2, 3, 1]}, inputs=[images], outputs=[inner])
    )


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


def _freeze(
    graph: gs.Graph, images: Array, file: OnnxFile
) -> tuple[gs.Graph, onnx.ModelProto, int | None, dict[str, Array]]:
    """Make constant what does not depend on pixels; find out whether any batch can be run.

    Returns:
        The graph with constants, the graph before, the only batch that it runs on, and tensors.
    """
    reason = ""
    for candidate in (graph, _free_reshapes(graph)):
        proto = gs.export_onnx(candidate)
        try:
            values = run_onnx(proto, _observed(candidate), (images[:1], images))
            _require_independent_images(candidate, *values)
            _replace_frozen(candidate, *values)
            return candidate, proto, None, values[0]
        except (OnnxFileError, _FixedBatchError) as error:
            reason = str(error)
    batch = file.batch or 1
    fixed = gs.import_onnx(gs.export_onnx(graph))
    fixed.inputs[0].shape = [batch, *fixed.inputs[0].shape[1:]]
    proto = gs.export_onnx(fixed)
    (value,) = run_onnx(proto, _observed(fixed), (np.resize(images, (batch, *images.shape[1:])),))
    _replace_frozen(fixed, value, value)
    logger.warning(
        "%s: runs on batches of %d only (%s): the engine gets that batch; export the model with a"
        " dynamic batch for others", file.path, batch, reason,
    )  # fmt: skip
    return fixed, proto, batch, value


def _observed(graph: gs.Graph) -> list[str]:
    """The outputs, and every tensor that does not depend on pixels but is read with such."""
    pixels = pixel_tensors(graph)
    names = dict.fromkeys(tensor.name for tensor in graph.outputs)
    for node in graph.nodes:
        if any(tensor.name in pixels for tensor in node.outputs):
            names.update(dict.fromkeys(t.name for t in node.inputs if _is_frozen(t, pixels)))
            if _needs_shapes(node):
                names.update(dict.fromkeys(t.name for t in (node.inputs[0], node.outputs[0])))
    return list(names)


def _needs_shapes(node: gs.Node) -> bool:
    """Whether a rewrite asks for the sides of what `node` reads and makes."""
    pads = node.attrs.get("pads", [])
    one_sided = pads[: len(pads) // 2] != pads[len(pads) // 2 :]
    return (
        node.op in ("Reshape", "Resize", "Upsample", "Softmax", "LogSoftmax")
        or node.attrs.get("auto_pad", "NOTSET") != "NOTSET"
        or one_sided
    )


def _is_frozen(tensor: gs.Tensor, pixels: set[str]) -> bool:
    return isinstance(tensor, gs.Variable) and bool(tensor.name) and tensor.name not in pixels


def _require_independent_images(
    graph: gs.Graph, one: Mapping[str, Array], two: Mapping[str, Array]
) -> None:
    """The first of two images must give what it gives alone."""
    pixels = pixel_tensors(graph)
    for name in (tensor.name for tensor in graph.outputs if tensor.name in pixels):
        alone, together = one[name], two[name]
        if together.shape != (2, *alone.shape[1:]) or len(alone) != 1:
            raise _FixedBatchError(
                f"its output {name!r} is {list(together.shape)} for two images and"
                f" {list(alone.shape)} for one"
            )
        with np.errstate(invalid="ignore"):
            difference = np.abs(together[:1].astype(np.float64) - alone).max(initial=0)
        if difference > _BATCH_TOLERANCE * np.abs(alone).max(initial=0):
            raise _FixedBatchError(f"its output {name!r} mixes the images of a batch")


def _free_reshapes(graph: gs.Graph) -> gs.Graph:
    """Copy whose Reshapes to [1, ...] leave the first dimension open."""
    free = gs.import_onnx(gs.export_onnx(graph))
    pixels = pixel_tensors(free)
    for node in free.nodes:
        if node.op != "Reshape" or node.inputs[0].name not in pixels:
            continue
        shape = node.inputs[1]
        values = shape.values if isinstance(shape, gs.Constant) else None
        if values is not None and values.ndim == 1 and len(values) and values[0] == 1:
            first = 0 if -1 in values else -1
            opened = np.array([first, *values[1:]], dtype=np.int64)
            node.inputs[1] = gs.Constant(f"{node.name}_open_shape", opened)
    return free


def _replace_frozen(graph: gs.Graph, one: Mapping[str, Array], two: Mapping[str, Array]) -> None:
    """Put constants in the place of what does not depend on pixels; drop outputs of that kind."""
    pixels = pixel_tensors(graph)
    for tensor in [t for t in graph.outputs if t.name not in pixels]:
        logger.warning("output %r does not depend on the image: left out", tensor.name)
    graph.outputs = [tensor for tensor in graph.outputs if tensor.name in pixels]
    if not graph.outputs:
        raise OnnxFileError("none of its outputs depends on the image")
    made: dict[str, gs.Tensor] = {}
    for node in list(graph.nodes):
        if not any(tensor.name in pixels for tensor in node.outputs):
            continue
        for index, tensor in enumerate(node.inputs):
            if not _is_frozen(tensor, pixels):
                continue
            shape = _open_shape(node, index, one, two)
            if shape is not None:
                node.inputs[index] = gs.Constant(f"{node.name}_shape", shape)
            else:
                if tensor.name not in made:
                    made[tensor.name] = _constant(graph, tensor.name, one, two)
                node.inputs[index] = made[tensor.name]


def _open_shape(
    node: gs.Node, index: int, one: Mapping[str, Array], two: Mapping[str, Array]
) -> Array | None:
    """Target of a Reshape or Expand that grows with the batch, written for any batch."""
    target = node.inputs[index].name
    if (
        index != 1
        or node.op not in ("Reshape", "Expand")
        or np.array_equal(one[target], two[target])
    ):
        return None
    if node.op == "Expand":  # the tensor has the batch already
        return np.where(one[target] == two[target], one[target], 1).astype(np.int64)
    alone, together = (values[node.outputs[0].name].shape for values in (one, two))
    grows = [before != after for before, after in zip(alone, together, strict=True)]
    if sum(grows) != 1:
        raise _FixedBatchError(f"Reshape {node.name!r} makes {list(alone)} of one image")
    return np.where(grows, -1, alone).astype(np.int64)


def _constant(
    graph: gs.Graph, name: str, one: Mapping[str, Array], two: Mapping[str, Array]
) -> gs.Tensor:
    """What `name` is for any batch: a constant, or one that is repeated for every image."""
    alone, together = one[name], two[name]
    if alone.shape == together.shape and np.array_equal(alone, together):
        return gs.Constant(f"{name}_frozen", alone)
    twice = np.concatenate([alone, alone]) if alone.ndim else alone
    if not np.array_equal(twice, together):
        raise _FixedBatchError(f"{name!r} changes with the batch")
    repeated = gs.Variable(f"{name}_repeated", alone.dtype, list(alone.shape))
    node = gs.Node("RepeatBatch", f"{name}_repeat", domain="reptrt")
    node.inputs = [graph.inputs[0], gs.Constant(f"{name}_frozen", alone)]
    node.outputs = [repeated]
    graph.nodes.insert(0, node)
    return repeated
