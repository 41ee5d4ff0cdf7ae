"""Scales in FP16, so that DequantizeLinear feeds an FP16 layer without a Cast between.

That is what NVIDIA's own tool writes, and what classic TensorRT's fusions are made for. A scale that
FP16 holds with fewer than its 11 bits, or as 0, keeps FP32 and its Casts; so does all that meets it in
a product, since TensorRT refuses a product of two types of scale (seen in TensorRT-RTX 1.7.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    has_blocks,
    is_symmetric_int8,
    nodes_of,
    producer,
    scale_of,
    set_grid,
    zero_point_of,
)
from reptrt.engines.surgery.rewire import is_any, replace_reads

_SMALLEST = float(np.finfo(np.float16).tiny)
_LARGEST = float(np.finfo(np.float16).max)
_OPSET = 19  # since which Q and DQ take FP16


class HalveScales(Pass):
    """Round the scales around FP16 layers to FP16, and read and write FP16 there.

    A pair is changed whole or not at all: Q and every DQ of its codes share one grid. Rounding moves a
    value by at most 2^-11 of itself, a sixteenth of a step at the end of the grid.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is a Q or DQ node."""
        if graph.opset < _OPSET:
            return 0
        names, grids = Names(graph), [_grid(graph, node) for node in _heads_of_grids(graph)]
        chosen = _without_mixed_products(graph, grids)
        for grid in chosen:
            _halve(names, grid)
        return sum(len(grid.nodes) for grid in chosen)


@dataclass(frozen=True)
class _Grid:
    """A Q and the DQ nodes of its codes, or the DQ of a weight.

    Attributes:
        nodes: those that share the scale.
        scale: of all, in FP32.
        source: the FP16 tensor that Q reads widened; None for a weight.
        fits: whether it can be FP16.
    """

    nodes: tuple[gs.Node, ...]
    scale: np.ndarray
    source: gs.Tensor | None
    fits: bool


def _heads_of_grids(graph: gs.Graph) -> list[gs.Node]:
    weights = [node for node in nodes_of(graph, DEQUANTIZE) if constant_at(node, 0) is not None]
    return [*weights, *nodes_of(graph, QUANTIZE)]


def _grid(graph: gs.Graph, head: gs.Node) -> _Grid:
    scale = _with_dead_raised(head)
    fits = _is_int8(head) and bool(((scale >= _SMALLEST) & (scale <= _LARGEST)).all())
    if head.op == DEQUANTIZE:
        return _Grid((head,), scale, None, fits and _feeds_halves(graph, head))
    source, codes = _half_source(head), head.outputs[0]
    readers = [node for node in codes.outputs if node.op == DEQUANTIZE]
    is_pair = len(readers) == len(codes.outputs) and not is_any(codes, graph.outputs)
    is_half = source is not None and all(_feeds_halves(graph, node) for node in readers)
    return _Grid((head, *readers), scale, source, fits and is_pair and is_half)


def _without_mixed_products(graph: gs.Graph, grids: list[_Grid]) -> list[_Grid]:
    """The grids that fit, less those that meet one that does not in a node."""
    owner = {id(node): index for index, grid in enumerate(grids) for node in grid.nodes}
    kept = {index for index, grid in enumerate(grids) if grid.fits}
    meetings = [
        {owner[id(node)] for tensor in node.inputs for node in _dequantizers(tensor)}
        for node in graph.nodes
    ]
    while mixed := [met for met in meetings if met & kept and not met <= kept]:
        kept -= set().union(*mixed)
    return [grid for index, grid in enumerate(grids) if index in kept]


def _dequantizers(tensor: gs.Tensor) -> list[gs.Node]:
    """The DequantizeLinear nodes whose values `tensor` holds."""
    node = producer(tensor)
    if node is None or node.op == DEQUANTIZE:
        return [] if node is None else [node]
    if node.op == "Concat":
        return [found for part in node.inputs for found in _dequantizers(part)]
    return _dequantizers(node.inputs[0]) if node.op == "Cast" or commutes(node) else []


def _halve(names: Names, grid: _Grid) -> None:
    head = grid.nodes[0]
    if grid.source is not None:
        _read_half(names, head, grid.source)
    for node in grid.nodes:
        zero_point = zero_point_of(node)
        assert zero_point is not None
        set_grid(names, node, grid.scale.astype(np.float16), zero_point)
        if node.op == DEQUANTIZE:
            node.outputs[0].dtype = np.float16
            for cast in list(node.outputs[0].outputs):
                replace_reads(cast.outputs[0], node.outputs[0])
                cast.inputs.clear()


def _read_half(names: Names, quantize: gs.Node, source: gs.Tensor) -> None:
    """Let `quantize`, or the Clip in front of it, read `source`."""
    clip = producer(quantize.inputs[0])
    if clip is None or clip.op != "Clip":
        quantize.inputs[0] = source
        return
    bounds = [
        names.constant(f"{b.name}_half", b.values.astype(np.float16)) for b in clip.inputs[1:]
    ]
    clip.inputs = [source, *bounds]
    clip.outputs[0].dtype = np.float16


def _half_source(quantize: gs.Node) -> gs.Tensor | None:
    """The FP16 tensor that `quantize` reads widened, and perhaps clipped between; or None."""
    node = producer(quantize.inputs[0])
    if node is not None and node.op == "Clip":
        is_own = len(node.outputs[0].outputs) == 1
        is_constant = all(isinstance(bound, gs.Constant) for bound in node.inputs[1:])
        node = producer(node.inputs[0]) if is_own and is_constant else None
    is_widening = node is not None and node.op == "Cast" and node.inputs[0].dtype == np.float16
    return node.inputs[0] if node is not None and is_widening else None


def _feeds_halves(graph: gs.Graph, dequantize: gs.Node) -> bool:
    """Whether all that reads `dequantize` are Casts to FP16."""
    values = dequantize.outputs[0]
    casts = [
        node
        for node in values.outputs
        if node.op == "Cast"
        and node.attrs["to"] == onnx.TensorProto.FLOAT16
        and not is_any(node.outputs[0], graph.outputs)
    ]
    is_read = bool(casts) and len(casts) == len(values.outputs)
    return _is_int8(dequantize) and is_read and not is_any(values, graph.outputs)


def _is_int8(node: gs.Node) -> bool:
    """Whether a Q or DQ node has an FP32 scale and symmetric INT8 codes."""
    return scale_of(node).dtype == np.float32 and not has_blocks(node) and is_symmetric_int8(node)


def _with_dead_raised(node: gs.Node) -> np.ndarray:
    """The scale of `node`, raised to what FP16 holds for the channels of a weight that are zeros."""
    scale, codes = scale_of(node), constant_at(node, 0)
    if codes is None or scale.size == 1:
        return scale
    axis = int(node.attrs.get("axis", 1)) % codes.ndim
    rows = np.moveaxis(codes, axis, 0).reshape(scale.size, -1)
    raised = np.where(rows.any(axis=1), scale, np.maximum(scale, _SMALLEST))
    return np.asarray(raised.astype(scale.dtype))
