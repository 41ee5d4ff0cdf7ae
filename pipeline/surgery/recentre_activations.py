"""Activations on a symmetric int8 grid: TensorRT takes zero point 0 only.

An asymmetric grid also clips: ONNX Runtime deletes the Relu or Clip whose work the grid does, so
setting zero points to 0 alone breaks the network. Here the clipping becomes an operator again.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from pipeline.surgery.base import Pass, SurgeryError
from pipeline.surgery.keep_saturation import keep_saturation
from pipeline.surgery.names import Names
from pipeline.surgery.qdq import (
    BYTE_TYPES,
    DEQUANTIZE,
    QUANTIZE,
    is_symmetric_int8,
    label,
    nodes_of,
    same_grid,
    scale_of,
    set_grid,
    zero_point_of,
)


class RecentreActivations(Pass):
    """Move 8-bit pairs with any zero point to int8 with zero point 0, clipping to the old range.

    A grid of scale s and zero point z covers [(min - z) s, (max - z) s]; the new scale is the
    smallest symmetric one that covers it, at most 255/127 s (exactly s for uint8 with z = 128).
    The result is within one new step of the old one.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Recentre in place; a site is a QuantizeLinear with its readers."""
        recentred = 0
        names = Names(graph)
        for node in nodes_of(graph, QUANTIZE):
            zero_point = zero_point_of(node)
            if zero_point is None or zero_point.dtype not in BYTE_TYPES or is_symmetric_int8(node):
                continue
            readers = _readers(node)
            low, high, scale = _covering_grid(node, zero_point)
            keep_saturation(graph, names, node, (low, high), float(scale.item()))
            for member in (node, *readers):
                set_grid(names, member, scale, np.zeros(scale.shape, np.int8))
            recentred += 1
        return recentred

    def ensures(self, graph: gs.Graph) -> None:
        """Every 8-bit node has an int8 zero point that is 0."""
        for node in nodes_of(graph, QUANTIZE, DEQUANTIZE):
            zero_point = zero_point_of(node)
            is_foreign = zero_point is not None and not is_symmetric_int8(node)
            if is_foreign and zero_point is not None and zero_point.dtype.kind in "iu":
                raise SurgeryError(
                    f"{label(node)}: {zero_point.dtype.name} with zero point "
                    f"{int(zero_point.flat[0])} has no int8 twin here; TensorRT takes int8 with "
                    "zero point 0, so quantize with 8 bits between float tensors"
                )


def _readers(quantize: gs.Node) -> list[gs.Node]:
    """The DequantizeLinear nodes that undo `quantize`; anything else cannot be recentred."""
    readers = list(quantize.outputs[0].outputs)
    for reader in readers:
        if reader.op != DEQUANTIZE or not same_grid(quantize, reader):
            raise SurgeryError(
                f"{label(reader)}: reads the codes of {label(quantize)} on another grid; give the "
                "pair one scale and zero point"
            )
    return readers


def _covering_grid(quantize: gs.Node, zero_point: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The range (low, high) of an asymmetric grid and the symmetric int8 scale that covers it."""
    scale = scale_of(quantize)
    if scale.size != 1 or zero_point.size != 1:
        raise SurgeryError(
            f"{label(quantize)}: a per-channel zero point of an activation cannot be recentred; "
            "quantize activations per tensor"
        )
    legal, zero, step = np.iinfo(zero_point.dtype), int(zero_point.item()), float(scale.item())
    low, high = (legal.min - zero) * step, (legal.max - zero) * step
    covering = np.full(scale.shape, max(low / -128, high / 127), scale.dtype)
    return low, high, covering
