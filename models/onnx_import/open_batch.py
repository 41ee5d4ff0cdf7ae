"""Open the batch of a graph that fixes it by habit, as exports for one image do.

A Reshape to [1, ...] or [heads, ...], a Resize to the sizes [1, ...], a constant [1, ...] that is joined
to a tensor of images and the first state of a recurrent layer say a number where they mean the batch. Where images are counted is followed from
the inputs on; whether that is right is tested afterwards, with two images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.inputs import Feed
from reptrt.models.onnx_import.counted_axis import Place, moved_place
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.pieces import batch_source, pixel_tensors, tensors_read
from reptrt.models.onnx_import.values import BATCH, Array, infer_shapes, run_onnx

_RECURRENT = ("LSTM", "GRU", "RNN")
_STATES, _RANK_OF_STATES = (5, 6), 3
_BROADCASTING = ("Add", "Div", "MatMul", "Mul", "Sub", "Where")


def open_batch(
    graph: gs.Graph, feed: Feed | None, batch: int = 1, *, computes_constants: bool = True
) -> gs.Graph:
    """Copy of `graph`, which was written for `batch` images, in which such nodes leave it open.

    Args:
        graph: stays as it is.
        feed: values of its inputs for `batch` images; None where their sides are open.
        batch: images.
        computes_constants: whether what depends on no pixel, but maybe on their number, stays computed; else it is
            what it is for `batch` images.

    Raises:
        OnnxFileError: ONNX Runtime cannot run the graph, or an output has no axis for images.
    """
    opened = gs.import_onnx(gs.export_onnx(graph))
    frozen = {} if feed is None else _frozen_values(opened, feed)
    fixed = _with_constants(opened, frozen)
    shapes = infer_shapes(fixed, batch)
    opened = opened if computes_constants else fixed.cleanup()
    places = {t.name: Place(0) for t in opened.inputs if list(t.shape or ())[:1] == [BATCH]}
    for node in list(opened.nodes):
        read = [tensor for tensor in tensors_read(node) if tensor.name in places]
        if not read or node.op in ("Shape", "Size"):
            continue
        _write_view(node, shapes, frozen)
        place = moved_place(node, read, places, shapes, batch)
        places.update(_places_of_outputs(node, place, shapes))
        if node.op == "Reshape" and node.inputs[0].name in places:
            _open_reshape(node, shapes.get(node.outputs[0].name), place.axis)
        elif node.op == "Resize" and node.inputs[0].name in places:
            _open_resize(node, shapes, frozen)
        elif node.op == "Concat":
            _open_concat(opened, node, place, frozen, batch)
        elif node.op == "Expand" and node.inputs[0].name in places:
            _open_expand(node, place, shapes, frozen)
        elif node.op in _RECURRENT:
            _open_states(opened, node, frozen, batch)
        elif node.op in _BROADCASTING and place.before == 1:
            _open_operands(opened, node, place, shapes, frozen, batch)
    for tensor in opened.outputs:
        _require_counted(tensor.name, places.get(tensor.name), shapes.get(tensor.name), batch)
    return sort_nodes(opened)


def _places_of_outputs(
    node: gs.Node, place: Place, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Place]:
    """Where its outputs count images, of which the first does at `place`: a last state has an axis less in front."""
    rank = len(shapes.get(node.outputs[0].name, ())) if node.outputs else 0
    found = {}
    for output in [output for output in node.outputs if output.name]:
        missing = rank - len(shapes.get(output.name, ())) if node.op in _RECURRENT else 0
        found[output.name] = replace(place, axis=max(0, place.axis - missing))
    return found


def _require_counted(
    name: str, place: Place | None, shape: tuple[int, ...] | None, batch: int
) -> None:
    """Refuse an output that has images and something else in one axis, [boxes, values] of one image."""
    if place and shape and shape[place.axis : place.axis + 1] != (batch,):
        raise OnnxFileError(f"its output {name!r} of shape {list(shape)} has no axis for images")


def _frozen_values(graph: gs.Graph, feed: Feed) -> dict[str, Array]:
    """What does not depend on pixels, but is computed and read with such, by name."""
    pixels = pixel_tensors(graph)
    names = {
        tensor.name: None
        for node in graph.nodes
        if any(tensor.name in pixels for tensor in node.outputs)
        for tensor in node.inputs
        if isinstance(tensor, gs.Variable) and tensor.name and tensor.name not in pixels
    }
    return run_onnx(gs.export_onnx(graph), list(names), [feed])[0] if names else {}


def _with_constants(graph: gs.Graph, frozen: Mapping[str, Array]) -> gs.Graph:
    """Copy of `graph` with constants in the place of `frozen`."""
    copied = gs.import_onnx(gs.export_onnx(graph))
    seen = {name: gs.Constant(f"{name}_seen", value) for name, value in frozen.items()}
    for node in copied.nodes:
        for index, tensor in enumerate(node.inputs):
            node.inputs[index] = seen.get(tensor.name, tensor)
    return copied


def _value(tensor: gs.Tensor, frozen: Mapping[str, Array]) -> Array | None:
    """Of a constant, or of what is as good as one."""
    return tensor.values if isinstance(tensor, gs.Constant) else frozen.get(tensor.name)


def _write_view(
    node: gs.Node, shapes: Mapping[str, tuple[int, ...]], frozen: Mapping[str, Array]
) -> None:
    """Write a Gather of all elements of a row, in their order, as the Reshape that it is."""
    if node.op != "Gather" or len(shapes.get(node.inputs[0].name, ())) != 1:
        return
    places = _value(node.inputs[1], frozen)
    (count,) = shapes[node.inputs[0].name]
    if places is not None and np.array_equal(np.ravel(places), np.arange(count)):
        shape = gs.Constant(f"{node.name}_shape", np.array(places.shape, np.int64))
        node.op, node.attrs, node.inputs = "Reshape", {}, [node.inputs[0], shape]


def _open_operands(
    graph: gs.Graph,
    node: gs.Node,
    place: Place,
    shapes: Mapping[str, tuple[int, ...]],
    frozen: Mapping[str, Array],
    batch: int,
) -> None:
    """Repeat for every image what meets images x others, as queries meet keys in [N * heads, tokens, channels]."""
    made = shapes.get(node.outputs[0].name, ())
    for index, operand in enumerate(node.inputs):
        values = _value(operand, frozen)
        axis = place.axis - (len(made) - (0 if values is None else values.ndim))
        if values is None or axis not in range(values.ndim) or values.shape[axis] in (1, batch):
            continue
        if values.shape[axis] == made[place.axis]:
            _repeat_input(graph, node, index, values, axis, batch)


def _repeat_input(
    graph: gs.Graph, node: gs.Node, index: int, values: Array, axis: int, batch: int
) -> None:
    """Repeat the constant `values`, input `index`, along `axis` where it is the same for each of `batch` images."""
    if values.shape[axis] % batch:
        return
    first = np.take(values, range(values.shape[axis] // batch), axis)
    if np.array_equal(np.concatenate([first] * batch, axis), values):
        node.inputs[index] = _repeated(graph, f"{node.name}_input_{index}", first, axis)


def _open_reshape(node: gs.Node, made: tuple[int, ...] | None, axis: int) -> None:
    """Let side `axis` of what `node` makes follow from the rest; `made` is its shape, None for an open one."""
    shape = node.inputs[1]
    values = shape.values if isinstance(shape, gs.Constant) else np.zeros(0)
    if made and 0 not in made:
        opened = np.array([*made[:axis], -1, *made[axis + 1 :]], dtype=np.int64)
        node.attrs.pop("allowzero", None)
    elif len(values) and values[0] == 1 and not (node.attrs.get("allowzero", 0) and 0 in values):
        node.attrs.pop("allowzero", None)
        opened = np.array([0 if -1 in values else -1, *values[1:]], dtype=np.int64)
    else:
        return
    node.inputs[1] = gs.Constant(f"{node.name}_open_shape", opened)


def _open_expand(
    node: gs.Node,
    place: Place,
    shapes: Mapping[str, tuple[int, ...]],
    frozen: Mapping[str, Array],
) -> None:
    """Leave the side of images as it is."""
    values, source = _value(node.inputs[1], frozen), shapes.get(node.inputs[0].name)
    if values is None or source is None or len(values) != len(source) or place.axis >= len(source):
        return
    if values[place.axis] == source[place.axis]:
        kept = [1 if axis == place.axis else int(side) for axis, side in enumerate(values)]
        node.inputs[1] = gs.Constant(f"{node.name}_open_shape", np.array(kept, np.int64))


def _open_resize(
    node: gs.Node, shapes: Mapping[str, tuple[int, ...]], frozen: Mapping[str, Array]
) -> None:
    """Say by how much to resize instead of to what size, where the two are the same."""
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    source = shapes.get(node.inputs[0].name)
    values = _value(sizes, frozen) if sizes else None
    if values is None or source is None or node.attrs.get("axes") or values[0] != source[0]:
        return
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    scales = [1.0] + [_scale(a, int(b)) for a, b in zip(source[1:], values[1:], strict=True)]
    node.inputs[2] = gs.Constant(f"{node.name}_open_scales", np.array(scales, np.float32))
    del node.inputs[3]


def _scale(before: int, after: int) -> float:
    """The factor of float32 that makes `after` of `before` pixels, rounded down; ONNX multiplies in float64."""
    factor = np.float32(after / before)
    while math.floor(before * float(factor)) < after:
        factor = np.nextafter(factor, np.float32(np.inf))
    return float(factor)


def _open_concat(
    graph: gs.Graph, node: gs.Node, place: Place, frozen: Mapping[str, Array], batch: int
) -> None:
    """Repeat for every image what is joined to images along another axis than theirs."""
    axis = place.axis
    for index, part in enumerate(node.inputs):
        values = _value(part, frozen)
        if values is None or place.before > 1 or values.shape[axis : axis + 1] != (batch,):
            continue
        if node.attrs.get("axis", 0) % values.ndim != axis:
            _repeat_input(graph, node, index, values, axis, batch)


def _open_states(graph: gs.Graph, node: gs.Node, frozen: Mapping[str, Array], batch: int) -> None:
    """Repeat for every image the first states [directions, images x others, units] of a recurrent layer."""
    for index in [index for index in _STATES if index < len(node.inputs)]:
        values = _value(node.inputs[index], frozen)
        if values is not None and values.ndim == _RANK_OF_STATES:
            _repeat_input(graph, node, index, values, 1, batch)


def _repeated(graph: gs.Graph, stem: str, first: Array, axis: int) -> gs.Tensor:
    """`first`, repeated along `axis` for every image."""
    shape, batch, repeats = (
        gs.Variable(f"{stem}_{kind}", np.int64) for kind in ("shape", "batch", "repeats")
    )
    output = gs.Variable(f"{stem}_repeated", first.dtype)
    part, place = gs.Constant(stem, first), gs.Constant(f"{stem}_first", np.zeros(1, np.int64))
    ahead, behind = (
        gs.Constant(f"{stem}_{kind}", np.ones(count, np.int64))
        for kind, count in (("ahead", axis), ("behind", first.ndim - 1 - axis))
    )
    graph.nodes.extend(
        [
            gs.Node("Shape", f"{stem}_of_images", {}, [batch_source(graph)], [shape]),
            gs.Node("Gather", f"{stem}_of_shape", {}, [shape, place], [batch]),
            gs.Node("Concat", f"{stem}_join", {"axis": 0}, [ahead, batch, behind], [repeats]),
            gs.Node("Tile", f"{stem}_tile", {}, [part, repeats], [output]),
        ]
    )
    return output
