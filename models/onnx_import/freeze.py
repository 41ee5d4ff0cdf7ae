"""Make constant what does not depend on pixels, and find out whether a graph takes any batch.

Shapes, positions and weights behind Casts are computed by ONNX Runtime for one image and for two: what
is equal becomes a constant, what is twice the same a repeated constant, and what grows in another way
stays computed. Where the graph fixes the batch by habit ([1, ...] in a Reshape, a Resize or a constant
that is joined), it is opened; it counts as open where the first of two images gives what it gives alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.models.onnx_import.cut import find_tail
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import OnnxFile
from reptrt.models.onnx_import.open_batch import open_batch
from reptrt.models.onnx_import.pieces import pixel_tensors
from reptrt.models.onnx_import.values import Array, range_error, run_onnx

logger = logging.getLogger(__name__)

_BATCH_TOLERANCE = 1e-3


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
    """

    graph: gs.Graph
    reference: onnx.ModelProto
    batch_size: int | None
    seen: dict[str, Array]


def freeze(graph: gs.Graph, images: Array, file: OnnxFile) -> Frozen:
    """Freeze `graph`; it may become the copy of one whose batch is open.

    Args:
        graph: with constants and names; it may be changed.
        images: two, [2, channels, H, W].
        file: that it comes from.

    Raises:
        OnnxFileError: ONNX Runtime cannot run it.
    """
    reason = ""
    for candidate in (graph, open_batch(graph)):
        proto = gs.export_onnx(candidate)
        try:
            values = run_onnx(proto, _observed(candidate), (images[:1], images))
            _require_independent_images(candidate, *values)
            _replace_frozen(candidate, *values)
            return Frozen(candidate, proto, None, values[0])
        except (OnnxFileError, _FixedBatchError) as error:
            reason = str(error)
    batch = file.batch or 1
    fixed = gs.import_onnx(gs.export_onnx(graph))
    fixed.inputs[0].shape = [batch, *fixed.inputs[0].shape[1:]]
    proto = gs.export_onnx(fixed)
    (value,) = run_onnx(proto, _observed(fixed), (np.resize(images, (batch, *images.shape[1:])),))
    _replace_frozen(fixed, value, value)
    advice = "; export the model with a dynamic batch for others" if file.batch else ""
    logger.warning(
        "%s: runs on batches of %d only (%s): the engine gets that batch%s", file.path, batch,
        reason, advice,
    )  # fmt: skip
    return Frozen(fixed, proto, batch, value)


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
    """The only axis that is twice as long for two images; None where that is not so."""
    if len(one) != len(two):
        return None
    grown = [axis for axis, sides in enumerate(zip(one, two, strict=True)) if sides[0] != sides[1]]
    return grown[0] if len(grown) == 1 and two[grown[0]] == 2 * one[grown[0]] else None


def _holds_rows(alone: Array, together: Array) -> bool:
    """Whether every row for one image is among those for two, which are more."""
    if alone.ndim != together.ndim or alone.shape[1:] != together.shape[1:] or not alone.ndim:
        return False
    if len(together) <= len(alone) or _batch_axis(alone.shape, together.shape) == 0:
        return bool(len(alone) == 0 and len(together) == 0)
    rows = {row.tobytes() for row in np.round(together.astype(np.float64), 3)}
    return all(row.tobytes() in rows for row in np.round(alone.astype(np.float64), 3))


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
                    made[tensor.name] = _constant(graph, tensor, one, two)
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
    graph: gs.Graph, tensor: gs.Tensor, one: Mapping[str, Array], two: Mapping[str, Array]
) -> gs.Tensor:
    """What `tensor` is for any batch: a constant, one repeated for every image, or computed."""
    name = tensor.name
    alone, together = one[name], two[name]
    if alone.shape == together.shape and np.array_equal(alone, together):
        return gs.Constant(f"{name}_frozen", alone)
    if not alone.ndim or not np.array_equal(np.concatenate([alone, alone]), together):
        return tensor
    repeated = gs.Variable(f"{name}_repeated", alone.dtype, list(alone.shape))
    node = gs.Node("RepeatBatch", f"{name}_repeat", domain="reptrt")
    node.inputs = [graph.inputs[0], gs.Constant(f"{name}_frozen", alone)]
    node.outputs = [repeated]
    graph.nodes.insert(0, node)
    return repeated
