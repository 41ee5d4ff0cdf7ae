"""Convolutions whose weights an image modulates, as convolutions with constant weights.

StyleGAN's layers (https://arxiv.org/abs/1912.04958; GFPGAN and others that restore faces) multiply a constant
weight by a factor per input channel, then by one per output channel, and export fixes the batch, as a weight of
its own is needed for each image. The factors commute with the convolution:

    conv(x, W * s * d) = d * conv(s * x, W)

so the weight is constant, may be in INT8, and the batch can be opened. The rewritten graph is run beside the
one before, and taken where both agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.inputs import Feed
from reptrt.models.onnx_import.pieces import Array, Fresh, makers, pixel_tensors
from reptrt.models.onnx_import.values import infer_shapes, range_error, run_onnx
from reptrt.models.onnx_import.writer import Writer

_TOLERANCE = 1e-3
_VIEWS = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
_OUT, _IN = 0, 1  # axes of a weight


@dataclass(frozen=True)
class _Factor:
    op: str
    tensor: gs.Tensor
    axis: int


class _Graph:
    """What is known of a graph: shapes, who makes what, and what no pixel changes."""

    def __init__(self, graph: gs.Graph, feed: Feed, batch: int) -> None:
        self.shapes = infer_shapes(graph, batch)
        self.makers, self.pixels = makers(graph), pixel_tensors(graph)
        self._graph, self._feed = graph, feed

    def value(self, tensor: gs.Tensor) -> Array:
        """Of what does not depend on pixels."""
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        return run_onnx(gs.export_onnx(self._graph), [tensor.name], [self._feed])[0][tensor.name]

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """() where it is not known."""
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.values.shape)
        return self.shapes.get(tensor.name, ())


def unmodulate(graph: gs.Graph, feed: Feed, batch: int) -> gs.Graph:
    """`graph`, or a copy of it whose modulated convolutions have constant weights.

    Args:
        graph: with constants and names, written for `batch` images; stays as it is.
        feed: values of its inputs for `batch` images.
        batch: only one image can modulate a weight without groups.

    Raises:
        OnnxFileError: ONNX Runtime cannot run it.
    """
    pixels = pixel_tensors(graph)
    if batch != 1 or not any(_is_modulated(node, pixels) for node in graph.nodes):
        return graph
    written = gs.import_onnx(gs.export_onnx(graph))
    known = _Graph(written, feed, batch)
    found = [
        (node, *_factors(known, node)) for node in written.nodes if _is_modulated(node, pixels)
    ]
    found = [(node, weight, factors) for node, weight, factors in found if factors]
    if not found:
        return graph
    for node, weight, factors in found:
        _write(written, node, weight, factors)
    sort_nodes(written.cleanup())
    names = [tensor.name for tensor in graph.outputs]
    before, after = (run_onnx(gs.export_onnx(one), names, [feed])[0] for one in (graph, written))
    is_same = all(range_error(before[name], after[name]) < _TOLERANCE for name in names)
    return written if is_same else graph


def _is_modulated(node: gs.Node, pixels: set[str]) -> bool:
    """Whether `node` is a convolution without groups or bias, whose weight depends on pixels."""
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    is_plain = node.op == "Conv" and node.attrs.get("group", 1) == 1 and not has_bias
    return is_plain and node.inputs[1].name in pixels


def _factors(known: _Graph, node: gs.Node) -> tuple[Array, list[_Factor]]:
    """The constant weight, and what it is multiplied by, the last first; no factors where it is made otherwise."""
    sides = known.shape(node.inputs[1])
    tensor, found = node.inputs[1], list[_Factor]()
    while sides and tensor.name in known.pixels:
        maker = known.makers.get(tensor.name)
        if maker is None:
            return np.zeros(0), []
        if maker.op in _VIEWS and _same_but_ones(known.shape(maker.inputs[0]), sides):
            tensor = maker.inputs[0]
            continue
        split = _split(known, maker, sides)
        if split is None:
            return np.zeros(0), []
        tensor, factor = split
        found.append(factor)
    return known.value(tensor).reshape(sides), found


def _split(
    known: _Graph, node: gs.Node, sides: tuple[int, ...]
) -> tuple[gs.Tensor, _Factor] | None:
    """The weight that `node` multiplies or divides, and by what; None where it does something else."""
    if node.op not in ("Mul", "Div"):
        return None
    orders = [(0, 1), (1, 0)] if node.op == "Mul" else [(0, 1)]
    for whole, other in orders:
        weight, factor = node.inputs[whole], node.inputs[other]
        axis = _axis_of(known.shape(factor), sides)
        if axis is not None and _same_but_ones(known.shape(weight), sides):
            return weight, _Factor(node.op, factor, axis)
    return None


def _same_but_ones(shape: tuple[int, ...], sides: tuple[int, ...]) -> bool:
    """Whether `shape` is `sides`, but for axes of 1 in front."""
    ahead = len(shape) - len(sides)
    return ahead >= 0 and shape[ahead:] == sides and set(shape[:ahead]) <= {1}


def _axis_of(shape: tuple[int, ...], sides: tuple[int, ...]) -> int | None:
    """The one axis of a weight of `sides`, out or in, along which a factor of `shape` differs."""
    aligned = (1,) * (len(sides) - len(shape)) + shape
    wide = [axis - (len(aligned) - len(sides)) for axis, side in enumerate(aligned) if side > 1]
    return wide[0] if shape and len(wide) == 1 and wide[0] in (_OUT, _IN) else None


def _write(graph: gs.Graph, node: gs.Node, weight: Array, factors: list[_Factor]) -> None:
    """Multiply what `node` reads and what it makes, in place of its weight."""
    writer, sides, behind = Writer(graph, node), [1] * (weight.ndim - 2), [*reversed(factors)]
    for factor in [factor for factor in behind if factor.axis == _IN]:
        channels = writer.reshape(factor.tensor, weight.shape[_IN], *sides)
        node.inputs[0] = writer.add(factor.op, node.inputs[0], channels)
    node.inputs[1] = writer.constant(np.ascontiguousarray(weight, np.float32))
    behind = [factor for factor in behind if factor.axis == _OUT]
    if not behind:
        return
    value = gs.Variable(Fresh(graph)(f"{node.name}_unscaled"), np.dtype(np.float32))
    (output,), node.outputs = node.outputs, [value]
    for factor in behind:
        channels = writer.reshape(factor.tensor, weight.shape[_OUT], *sides)
        value = writer.add(factor.op, value, channels)
    value.inputs[0].outputs = [output]
