"""Open the batch of a graph that fixes it by habit, as exports for one image do.

A Reshape to [1, ...], a Resize to the sizes [1, ...] and a constant [1, ...] that is joined to a tensor
of images say 1 where they mean the batch. Whether they do is tested afterwards, with two images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.pieces import batch_source, tensors_read
from reptrt.models.onnx_import.values import infer_shapes


def open_batch(graph: gs.Graph) -> gs.Graph:
    """Copy of `graph` in which such nodes leave the batch open."""
    opened = gs.import_onnx(gs.export_onnx(graph))
    shapes = infer_shapes(opened, 1)
    source = batch_source(opened)
    found = {tensor.name for tensor in opened.inputs}
    for node in list(opened.nodes):
        if node.op not in ("Shape", "Size") and any(t.name in found for t in tensors_read(node)):
            found.update(tensor.name for tensor in node.outputs if tensor.name)
            if node.op == "Reshape" and node.inputs[0].name in found:
                _open_reshape(node)
            elif node.op == "Resize" and node.inputs[0].name in found:
                _open_resize(node, shapes)
            elif node.op == "Concat":
                _open_concat(opened, node, found, source)
    return sort_nodes(opened)


def _open_reshape(node: gs.Node) -> None:
    shape = node.inputs[1]
    values = shape.values if isinstance(shape, gs.Constant) else None
    if values is None or values.ndim != 1 or not len(values) or values[0] != 1:
        return
    if node.attrs.pop("allowzero", 0) and 0 in values:
        node.attrs["allowzero"] = 1
        return
    first = 0 if -1 in values else -1
    opened = np.array([first, *values[1:]], dtype=np.int64)
    node.inputs[1] = gs.Constant(f"{node.name}_open_shape", opened)


def _open_resize(node: gs.Node, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Say by how much to resize instead of to what size, where the two are the same."""
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    source = shapes.get(node.inputs[0].name)
    if not isinstance(sizes, gs.Constant) or sizes.values[0] != 1 or node.attrs.get("axes"):
        return
    if source is None or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    scales = [1.0] + [_scale(a, int(b)) for a, b in zip(source[1:], sizes.values[1:], strict=True)]
    node.inputs[2] = gs.Constant(f"{node.name}_open_scales", np.array(scales, np.float32))
    del node.inputs[3]


def _scale(before: int, after: int) -> float:
    """The factor of float32 that makes `after` of `before` pixels, rounded down."""
    factor = np.float32(after / before)
    while math.floor(np.float32(before) * factor) < after:
        factor = np.nextafter(factor, np.float32(np.inf))
    return float(factor)


def _open_concat(graph: gs.Graph, node: gs.Node, pixels: set[str], source: gs.Tensor) -> None:
    """Repeat for every image what is joined to images along another axis than the first."""
    if node.attrs.get("axis", 0) == 0:
        return
    images = next((tensor for tensor in node.inputs if tensor.name in pixels), None)
    for index, part in enumerate(node.inputs):
        if images is None or not isinstance(part, gs.Constant) or part.values.ndim < 2:
            continue
        if part.values.shape[0] == 1:
            node.inputs[index] = _repeated(graph, node, index, part, source)


def _repeated(
    graph: gs.Graph, node: gs.Node, index: int, part: gs.Constant, images: gs.Tensor
) -> gs.Tensor:
    stem = f"{node.name}_part_{index}"
    shape, batch, repeats = (
        gs.Variable(f"{stem}_{kind}", np.int64) for kind in ("shape", "batch", "repeats")
    )
    output = gs.Variable(f"{stem}_repeated", part.values.dtype)
    first = gs.Constant(f"{stem}_first", np.zeros(1, np.int64))
    ones = gs.Constant(f"{stem}_ones", np.ones(part.values.ndim - 1, np.int64))
    graph.nodes.extend(
        [
            gs.Node("Shape", f"{stem}_of_images", {}, [images], [shape]),
            gs.Node("Gather", f"{stem}_of_shape", {}, [shape, first], [batch]),
            gs.Node("Concat", f"{stem}_join", {"axis": 0}, [batch, ones], [repeats]),
            gs.Node("Tile", f"{stem}_tile", {}, [part, repeats], [output]),
        ]
    )
    return output
