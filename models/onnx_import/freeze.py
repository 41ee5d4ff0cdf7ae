"""Make constant what does not depend on pixels, and find out whether a graph takes any batch.

Shapes, positions and weights behind Casts are computed by ONNX Runtime for one image and for two: what
is equal becomes a constant, what is twice the same a repeated constant, and what grows in another way
stays computed. Where the graph fixes the batch by habit ([1, ...] in a Reshape, a Resize or a constant
that is joined), it is opened; it counts as open where the first of two images gives what it gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.models.inputs import NetworkInput, other_sizes, random_feed, resize_feed
from reptrt.models.onnx_import.cut import find_tail
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file_inputs import OnnxFile
from reptrt.models.onnx_import.for_tensorrt import SHAPED
from reptrt.models.onnx_import.open_batch import open_batch
from reptrt.models.onnx_import.pieces import batch_source, pixel_tensors
from reptrt.models.onnx_import.values import BATCH, Array, range_error, run_onnx

_BATCH_TOLERANCE = 1e-3
_SIZES = 3  # input of a Resize


class _FixedBatchError(Exception):
    """The graph computes something else for two images than twice the same."""


@dataclass(frozen=True)
class Frozen:
    """A graph of operators of images, with everything else constant.

    Attributes:
        graph: With constants.
        reference: The graph before.
        batch_size: The only batch that it runs on; None for any.
        seen: Tensors whose shapes the rewrites ask for, for one image or the fixed batch.
        reason: Why there is no other batch.
    """

    graph: gs.Graph
    reference: onnx.ModelProto
    batch_size: int | None
    seen: dict[str, Array]
    reason: str = ""


def freeze(graph: gs.Graph, inputs: Sequence[NetworkInput], file: OnnxFile) -> Frozen:
    """Freeze `graph`; it may become the copy of one whose batch is open.

    Args:
        graph: with constants and names; it may be changed.
        inputs: of `graph`, by its names.
        file: that it comes from.

    Raises:
        OnnxFileError: ONNX Runtime cannot run it.
    """
    reason, two = "none of its inputs counts samples", random_feed(inputs, 2)
    one = resize_feed(two, inputs, 1)
    sized = [random_feed(others, 1) for others in other_sizes(inputs)]
    batch = file.batch or 1
    whole = resize_feed(two, inputs, batch)
    is_counted = any(read.batched for read in inputs)
    feed = None if sized else whole
    candidates: Sequence[Callable[[], gs.Graph]] = (
        lambda: graph,
        lambda: open_batch(graph, feed, batch),
        lambda: open_batch(graph, feed, batch, computes_constants=False),
    )
    for make in candidates if is_counted else ():
        try:
            candidate = make()
            proto = gs.export_onnx(candidate)
            values = run_onnx(proto, _observed(candidate), (one, two, *sized))
            _require_independent_images(candidate, *values[:2])
            _replace_frozen(candidate, values)
            return Frozen(candidate, proto, None, values[0])
        except (OnnxFileError, _FixedBatchError) as error:
            reason = str(error)
    fixed = gs.import_onnx(gs.export_onnx(graph))
    for tensor in fixed.inputs:
        tensor.shape = [batch if side == BATCH else side for side in tensor.shape]
    proto = gs.export_onnx(fixed)
    sized = [random_feed(others, batch) for others in other_sizes(inputs)]
    values = run_onnx(proto, _observed(fixed), (whole, whole, *sized))
    _replace_frozen(fixed, values)
    return Frozen(fixed, proto, batch, values[0], reason)


def _observed(graph: gs.Graph) -> list[str]:
    """The outputs, and every tensor that does not depend on pixels but is read with such."""
    pixels = pixel_tensors(graph)
    names = dict.fromkeys(tensor.name for tensor in graph.outputs)
    for node in graph.nodes:
        if any(tensor.name in pixels for tensor in node.outputs):
            names.update(dict.fromkeys(t.name for t in node.inputs if _is_frozen(t, pixels)))
            if _needs_shapes(node) or _may_take_all(node):
                names.update(dict.fromkeys(t.name for t in (node.inputs[0], node.outputs[0])))
    return list(names)


def _needs_shapes(node: gs.Node) -> bool:
    """Whether a rewrite asks for the sides of what `node` reads and makes."""
    pads = node.attrs.get("pads", [])
    one_sided = pads[: len(pads) // 2] != pads[len(pads) // 2 :]
    return (
        node.op in ("Reshape", "Resize", "Upsample", "Softmax", "LogSoftmax", *SHAPED)
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
    tail = find_tail(graph, ())
    decided = {t.name for node in graph.nodes if node.name in tail for t in node.outputs}
    for name in (tensor.name for tensor in graph.outputs if tensor.name in pixels):
        alone, together = one[name], two[name]
        if name in decided and _holds_rows(alone, together):
            continue  # as many rows as are found
        axis = _batch_axis(alone.shape, together.shape)
        if axis is None:
            raise _FixedBatchError(
                f"its output {name!r} is {list(together.shape)} for two images and"
                f" {list(alone.shape)} for one"
            )
        first = np.take(together, range(alone.shape[axis]), axis)
        if range_error(alone, first) > _BATCH_TOLERANCE:
            raise _FixedBatchError(f"its output {name!r} mixes the images of a batch")


def _batch_axis(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """The only axis that is twice as long for two images; None where that is not so.

    Behind the first one it counts images alone: one that is longer joins them, as a Reshape to
    [1, -1] does.
    """
    if len(one) != len(two):
        return None
    grown = [axis for axis, sides in enumerate(zip(one, two, strict=True)) if sides[0] != sides[1]]
    if len(grown) != 1 or two[grown[0]] != 2 * one[grown[0]]:
        return None
    return grown[0] if grown[0] == 0 or one[grown[0]] == 1 else None


def _holds_rows(alone: Array, together: Array) -> bool:
    """Whether every row for one image is among those for two, which are more."""
    if alone.ndim != together.ndim or alone.shape[1:] != together.shape[1:] or not alone.ndim:
        return False
    if len(together) <= len(alone) or _batch_axis(alone.shape, together.shape) == 0:
        return bool(len(alone) == 0 and len(together) == 0)
    rows = {row.tobytes() for row in np.round(together.astype(np.float64), 3)}
    return all(row.tobytes() in rows for row in np.round(alone.astype(np.float64), 3))


def _replace_frozen(graph: gs.Graph, seen: Sequence[Mapping[str, Array]]) -> None:
    """Put constants in the place of what does not depend on pixels.

    `seen`: values for one image, for two, and for images of other sizes where the size stays open.
    """
    pixels = pixel_tensors(graph)
    if not any(tensor.name in pixels for tensor in graph.outputs):
        raise OnnxFileError("none of its outputs depends on the image")
    made: dict[str, gs.Tensor] = {}
    for node in list(graph.nodes):
        if not any(tensor.name in pixels for tensor in node.outputs):
            continue
        if _may_take_all(node) and _takes_all(node, seen):
            sides = seen[0][node.outputs[0].name].shape[1:]
            shape = gs.Constant(f"{node.name}_shape", np.array([-1, *sides], np.int64))
            node.op, node.attrs, node.inputs = "Reshape", {}, [node.inputs[0], shape]
        for index, tensor in enumerate(node.inputs):
            if not _is_frozen(tensor, pixels):
                continue
            shape = _open_shape(node, index, seen)
            if shape is not None:
                node.inputs[index] = gs.Constant(f"{node.name}_shape", shape)
            elif node.op == "Resize" and index == _SIZES and _varies(tensor.name, seen):
                _scale_instead(node, seen)
            else:
                if tensor.name not in made:
                    made[tensor.name] = _constant(graph, tensor, seen)
                node.inputs[index] = made[tensor.name]
    _keep_outputs(graph, pixels, seen)


def _may_take_all(node: gs.Node) -> bool:
    if node.op != "Gather" or node.attrs.get("axis", 0) or isinstance(node.inputs[0], gs.Constant):
        return False
    places = node.inputs[1]
    return bool(not isinstance(places, gs.Constant) or places.values.ndim > 1)


def _takes_all(node: gs.Node, seen: Sequence[Mapping[str, Array]]) -> bool:
    """Whether a Gather takes every element in order, as PyTorch writes a strided view of a whole tensor."""
    source, places = node.inputs
    for values in seen:
        order = places.values if isinstance(places, gs.Constant) else values.get(places.name)
        data, made = values[source.name], values[node.outputs[0].name]
        is_view = data.ndim == 1 and made.ndim > 1
        if not is_view or made.shape[1:] != seen[0][node.outputs[0].name].shape[1:]:
            return False
        if order is None or not np.array_equal(np.ravel(order), np.arange(len(data))):
            return False
    return True


def _keep_outputs(graph: gs.Graph, pixels: set[str], seen: Sequence[Mapping[str, Array]]) -> None:
    """Let Identities make the outputs that no pixel changes; the tail takes them."""
    for index, output in enumerate(list(graph.outputs)):
        source = output if output.name in pixels else _constant(graph, output, seen)
        if source is not output:
            made = gs.Variable(output.name, source.dtype, None)
            node = gs.Node("Identity", f"{output.name}_kept", inputs=[source], outputs=[made])
            graph.outputs[index] = made
            output.name = f"{output.name}_before"
            graph.nodes.append(node)


def _varies(name: str, seen: Sequence[Mapping[str, Array]]) -> bool:
    """Whether a value differs between batches or sizes."""
    return any(not np.array_equal(seen[0][name], other[name]) for other in seen[1:])


def _open_shape(node: gs.Node, index: int, seen: Sequence[Mapping[str, Array]]) -> Array | None:
    """Target of a Reshape or Expand that grows with batch or size, written for any of them."""
    target = node.inputs[index].name
    if index != 1 or node.op not in ("Reshape", "Expand") or not _varies(target, seen):
        return None
    if node.op == "Expand":  # the tensor has the batch already
        same = [seen[0][target] == other[target] for other in seen[1:]]
        return np.asarray(np.where(np.all(same, axis=0), seen[0][target], 1), np.int64)
    made = np.array([values[node.outputs[0].name].shape for values in seen])
    read = [values[node.inputs[0].name].shape for values in seen]
    shape = made[0].copy()
    grows = [axis for axis in range(made.shape[1]) if np.any(made[:, axis] != made[0, axis])]
    if len(grows) > 1:  # a 0 copies the side of what is read
        copied = [
            axis
            for axis in grows
            if all(axis < len(s) and s[axis] == m[axis] for s, m in zip(read, made, strict=True))
        ]
        shape[copied] = 0
        grows = [axis for axis in grows if axis not in copied]
    if len(grows) > 1:
        raise _FixedBatchError(f"Reshape {node.name!r} makes {made[0].tolist()} of one image")
    shape[grows] = -1
    return np.asarray(shape, np.int64)


def _scale_instead(node: gs.Node, seen: Sequence[Mapping[str, Array]]) -> None:
    """Say by how much a Resize changes an open size, where that is the same for all sizes.

    Raises:
        OnnxFileError: it is not.
    """
    source, made = node.inputs[0].name, node.outputs[0].name
    factors = {
        tuple(b / a for a, b in zip(values[source].shape, values[made].shape, strict=True))
        for values in seen
    }
    if len(factors) > 1:
        raise OnnxFileError(
            f"Resize {node.name!r} scales images of different sizes differently: fix the size with"
            " `image_size`"
        )
    (scales,) = factors
    node.inputs[2] = gs.Constant(f"{node.name}_open_scales", np.array(scales, np.float32))
    del node.inputs[_SIZES]


def _constant(graph: gs.Graph, tensor: gs.Tensor, seen: Sequence[Mapping[str, Array]]) -> gs.Tensor:
    """What `tensor` is for any batch: a constant, one repeated for every image, or computed."""
    name = tensor.name
    alone, together = seen[0][name], seen[1][name]
    if any(not np.array_equal(alone, other[name]) for other in seen[2:]):
        return tensor
    if alone.shape == together.shape and np.array_equal(alone, together):
        return gs.Constant(f"{name}_frozen", alone)
    axis = _repeated_axis(alone, together)
    if axis is None:
        return tensor
    first = np.moveaxis(alone, axis, 0)
    repeated = gs.Variable(f"{name}_repeated", alone.dtype, list(first.shape))
    node = gs.Node("RepeatBatch", f"{name}_repeat", domain="reptrt")
    node.inputs = [batch_source(graph), gs.Constant(f"{name}_frozen", first)]
    node.outputs = [repeated]
    graph.nodes.insert(0, node)
    if axis == 0:
        return repeated
    turned = gs.Variable(f"{name}_turned", alone.dtype, list(alone.shape))
    order = [*range(1, axis + 1), 0, *range(axis + 1, alone.ndim)]
    turn = gs.Node("Transpose", f"{name}_turn", {"perm": order}, [repeated], [turned])
    graph.nodes.insert(1, turn)
    return turned


def _repeated_axis(alone: Array, together: Array) -> int | None:
    """The axis along which `together` is twice `alone`; behind the first one, it has a side of 1."""
    if alone.ndim != together.ndim:
        return None
    for axis, (one, two) in enumerate(zip(alone.shape, together.shape, strict=True)):
        may_count = two == 2 * one and (axis == 0 or one == 1)
        if may_count and np.array_equal(np.concatenate([alone, alone], axis), together):
            return axis
    return None
