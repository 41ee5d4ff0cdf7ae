"""Positive scales everywhere: TensorRT refuses zero and negative ones, dead channels write them.

Measured on TensorRT-RTX 1.7: 0 and negative values fail to parse; every positive value parses,
float16 subnormals too. A float32 subnormal is treated as zero here: its reciprocal is infinite.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass, SurgeryError
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    along_axis,
    constant_at,
    has_blocks,
    label,
    nodes_of,
    scale_of,
    zero_point_of,
)

# The smallest positive float16, so that the floor survives a conversion of the file to half.
FLOOR = 2.0**-24


class FloorScales(Pass):
    """Raise dead scales to `FLOOR` and turn negative ones positive; healthy scales stay.

    Constant codes are rewritten with their scale, so weights keep their value: 0 where the scale
    was 0. A dead activation returned 0 and now returns at most 128 * FLOOR. Turning a negative
    scale moves the one code that has no negative (-128) by one step.
    """

    def requires(self, graph: gs.Graph) -> None:
        """Scales are finite."""
        for node in nodes_of(graph, QUANTIZE, DEQUANTIZE):
            if not np.isfinite(scale_of(node).astype(np.float32)).all():
                raise SurgeryError(
                    f"{label(node)}: its scale is NaN or infinite; calibrate again on finite data"
                )

    def apply(self, graph: gs.Graph) -> int:
        """Repair in place; a site is a Q or DQ node."""
        floored = 0
        names = Names(graph)
        for node in nodes_of(graph, QUANTIZE, DEQUANTIZE):
            scale = scale_of(node)
            if has_blocks(node) or not (_is_dead(scale) | (scale < 0)).any():
                continue
            _require_mirror(node, scale)
            codes = constant_at(node, 0)
            if node.op == DEQUANTIZE and codes is not None:
                repaired = _repaired_codes(codes, node, scale)
                node.inputs[0] = names.constant(f"{node.inputs[0].name}_floored", repaired)
            positive = np.where(_is_dead(scale), FLOOR, np.abs(scale)).astype(scale.dtype)
            node.inputs[1] = names.constant(f"{node.inputs[1].name}_floored", positive)
            floored += 1
        return floored

    def ensures(self, graph: gs.Graph) -> None:
        """Every scale is positive."""
        for node in nodes_of(graph, QUANTIZE, DEQUANTIZE):
            if not (scale_of(node) > 0).all():
                raise SurgeryError(f"{label(node)}: its scale is still not positive")


def _is_dead(scale: np.ndarray) -> np.ndarray:
    smallest = FLOOR if scale.dtype == np.float16 else np.finfo(np.float32).tiny
    return np.asarray(np.abs(scale.astype(np.float32)) < smallest)


def _require_mirror(node: gs.Node, scale: np.ndarray) -> None:
    """A negative scale mirrors the grid; only a symmetric int8 grid is its own mirror image."""
    zero_point = zero_point_of(node)
    is_symmetric = zero_point is None or (zero_point.dtype == np.int8 and not zero_point.any())
    if (scale < 0).any() and not is_symmetric:
        raise SurgeryError(
            f"{label(node)}: a negative scale with a non-zero zero point has no positive twin; "
            "quantize with positive scales"
        )


def _repaired_codes(codes: np.ndarray, node: gs.Node, scale: np.ndarray) -> np.ndarray:
    """Codes [any shape] whose product with the repaired scale is the old weight."""
    steps = along_axis(scale, node, codes.ndim)
    zero_point = zero_point_of(node)
    zeros = np.int8(0) if zero_point is None else along_axis(zero_point, node, codes.ndim)
    mirrored = np.minimum(-codes.astype(np.int16), np.iinfo(codes.dtype).max)
    signed = np.where(steps < 0, mirrored, codes)
    return np.where(_is_dead(steps), zeros, signed).astype(codes.dtype)
