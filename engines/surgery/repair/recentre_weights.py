"""Weights on a symmetric int8 grid: TensorRT takes zero point 0 only."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    along_axis,
    constant_at,
    has_blocks,
    is_symmetric_int8,
    nodes_of,
    scale_of,
    set_grid,
    zero_point_of,
)

_AXIS_SINCE = 13  # the opset since which DequantizeLinear has an axis


class RecentreWeights(Pass):
    """Subtract the zero point from constant codes.

    Exact, with the scale unchanged, wherever code - zero_point fits int8. Where it does not, the
    scale of that channel grows to cover its largest weight and the codes are rounded anew. A weight
    with one scale gets one per output channel for that, so that the other channels stay exact.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Recentre in place; a site is a weight."""
        recentred = 0
        names = Names(graph)
        for node in nodes_of(graph, DEQUANTIZE):
            codes, zero_point = constant_at(node, 0), zero_point_of(node)
            if codes is None or zero_point is None or has_blocks(node):
                continue
            if codes.dtype not in BYTE_TYPES or is_symmetric_int8(node):
                continue
            signed = codes.astype(np.int16) - along_axis(zero_point, node, codes.ndim)
            scale, growth = scale_of(node), _growth(signed, scale_of(node), node)
            axis = _output_axis(node) if graph.opset >= _AXIS_SINCE else None
            if scale.size == 1 and (growth != 1).any() and axis is not None:
                node.attrs["axis"] = axis
                scale = np.full(codes.shape[axis], scale.item(), scale.dtype)
                growth = _growth(signed, scale, node)
            fitted = np.rint(signed / along_axis(growth, node, codes.ndim)).astype(np.int8)
            node.inputs[0] = names.constant(f"{node.inputs[0].name}_recentred", fitted)
            scale = (scale * growth).astype(scale.dtype)
            set_grid(names, node, scale, np.zeros(scale.shape, np.int8))
            recentred += 1
        return recentred


def _output_axis(node: gs.Node) -> int | None:
    """The axis of output channels in what `node` returns, None unless all that reads it agrees."""
    axes = {
        (0 if reader.op == "Conv" or reader.attrs.get("transB", 0) else 1)
        if reader.op in {"Conv", "Gemm"} and reader.inputs[1] is node.outputs[0]
        else None
        for reader in node.outputs[0].outputs
    }
    return axes.pop() if len(axes) == 1 else None


def _growth(signed: np.ndarray, scale: np.ndarray, node: gs.Node) -> np.ndarray:
    """By how much each scale must grow for `signed` in [-255, 255] to fit int8; in scale's shape."""
    if scale.size == 1:
        axes: tuple[int, ...] = tuple(range(signed.ndim))
    else:
        channel_axis = node.attrs.get("axis", 1) % signed.ndim
        axes = tuple(axis for axis in range(signed.ndim) if axis != channel_axis)
    lowest, highest = signed.min(axis=axes), signed.max(axis=axes)
    fits = (lowest >= -128) & (highest <= 127)
    growth = np.where(fits, 1.0, np.maximum(lowest / -128, highest / 127))
    return growth.reshape(scale.shape)
