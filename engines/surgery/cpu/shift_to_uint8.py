"""For ONNX Runtime on a CPU: activations as uint8 with zero point 128 instead of int8 with 0.

The codes are the same, 128 higher. Its integer kernels want a convolution between one DequantizeLinear
and one QuantizeLinear, so a Relu or Clip in front of a QuantizeLinear moves behind it: rounding and
clipping commute, and clipping codes is an operator of its own.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass, SurgeryError
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    is_symmetric_int8,
    label,
    nodes_of,
    producer,
    same_grid,
    scale_of,
    set_grid,
)
from reptrt.engines.surgery.rewire import is_any, replace_reads

ZERO_POINT = 128


class ShiftToUint8(Pass):
    """Add 128 to every activation's codes; an exact rewrite of a symmetric int8 graph."""

    def requires(self, graph: gs.Graph) -> None:
        """Codes are read by DequantizeLinear on the grid that made them, and by nothing else."""
        for node in nodes_of(graph, QUANTIZE):
            for reader in node.outputs[0].outputs:
                if reader.op != DEQUANTIZE or not same_grid(node, reader):
                    raise SurgeryError(
                        f"{label(reader)}: reads the codes of {label(node)} on another grid; give"
                        " the pair one scale and zero point"
                    )

    def apply(self, graph: gs.Graph) -> int:
        """Shift in place; a site is a QuantizeLinear with its readers."""
        shifted, names = 0, Names(graph)
        for node in nodes_of(graph, QUANTIZE):
            scale = scale_of(node)
            if not is_symmetric_int8(node) or scale.size != 1:
                continue
            readers = list(node.outputs[0].outputs)
            low, high = _take_clip(graph, node, float(scale.item()))
            for member in (node, *readers):
                set_grid(names, member, scale, np.full(scale.shape, ZERO_POINT, np.uint8))
            if (low, high) != (-128, 127):
                _clip_codes(graph, names, node, (low + ZERO_POINT, high + ZERO_POINT))
            shifted += 1
        return shifted


def _take_clip(graph: gs.Graph, quantize: gs.Node, scale: float) -> tuple[int, int]:
    """Remove the Relu or Clip that `quantize` alone reads; return the codes it allows."""
    everything = (-128, 127)
    clip = producer(quantize.inputs[0])
    if clip is None or clip.op not in ("Relu", "Clip"):
        return everything
    if len(clip.outputs[0].outputs) > 1 or is_any(clip.outputs[0], graph.outputs):
        return everything
    bounds = (0.0, np.inf) if clip.op == "Relu" else _bounds(clip)
    if bounds is None:
        return everything
    quantize.inputs[0] = clip.inputs[0]
    clip.outputs.clear()
    low, high = (np.clip(np.rint(np.float32(b) / np.float32(scale)), *everything) for b in bounds)
    return int(low), int(high)


def _bounds(clip: gs.Node) -> tuple[float, float] | None:
    """Least and greatest value that `clip` lets through, None where it computes them."""
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        left_out = index >= len(clip.inputs) or clip.inputs[index].is_empty()
        value = constant_at(clip, index)
        if value is None and not left_out:
            return None
        bounds.append(default if value is None else float(value.item()))
    return bounds[0], bounds[1]


def _clip_codes(graph: gs.Graph, names: Names, quantize: gs.Node, bounds: tuple[int, int]) -> None:
    """Clip the codes of `quantize` before anyone reads them."""
    codes = quantize.outputs[0]
    clipped = gs.Variable(names.fresh(f"{codes.name}_clipped"), np.uint8, codes.shape)
    replace_reads(codes, clipped)
    limits = [
        names.constant(f"{codes.name}_{name}", np.asarray(bound, np.uint8))
        for name, bound in zip(("low", "high"), bounds, strict=True)
    ]
    name = names.fresh(f"{codes.name}_clip")
    graph.nodes.append(gs.Node("Clip", name, inputs=[codes, *limits], outputs=[clipped]))
