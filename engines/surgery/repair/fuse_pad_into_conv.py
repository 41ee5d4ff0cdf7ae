"""Let the convolution pad: TensorRT keeps a Pad before Q/DQ as a kernel of its own.

A zero stays zero through quantization on any grid that holds its zero point, so a Pad moves over
Q/DQ, Relu, Cast and a Clip around zero unchanged (NVIDIA/TensorRT#2592).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, constant_at, input_at
from reptrt.engines.surgery.rewire import is_any, replace_reads
from reptrt.engines.surgery.value_range import clip_bounds


class FusePadIntoConv(Pass):
    """Fold a constant zero Pad into the pads of the Conv nodes that read it."""

    def apply(self, graph: gs.Graph) -> int:
        """Fuse in place; a site is a Pad."""
        fused = 0
        for pad in [node for node in graph.nodes if node.op == "Pad"]:
            pads = spatial_pads(pad)
            between: list[gs.Node] = []
            convs: list[gs.Node] = []
            if pads is None or not _reach_convs(graph, pad.outputs[0], between, convs):
                continue
            for conv in convs:
                own = conv.attrs.get("pads", [0] * len(pads))
                conv.attrs["pads"] = [mine + more for mine, more in zip(own, pads, strict=True)]
                conv.attrs["auto_pad"] = "NOTSET"
            for node in between:
                node.outputs[0].shape = pad.inputs[0].shape
            replace_reads(pad.outputs[0], pad.inputs[0])
            fused += 1
        return fused


def spatial_pads(pad: gs.Node) -> list[int] | None:
    """The pads of a zero Pad in the order of Conv (all begins, all ends), or None."""
    pads, value, axes = constant_at(pad, 1), constant_at(pad, 2), constant_at(pad, 3)
    if pads is None or str(pad.attrs.get("mode", "constant")) != "constant":
        return None
    if input_at(pad, 2) is not None and (value is None or value.any()):
        return None
    if input_at(pad, 3) is not None:
        rank = len(pad.inputs[0].shape or ())
        if axes is None or rank < 3:
            return None
        full = np.zeros(2 * rank, np.int64)
        full[axes % rank], full[axes % rank + rank] = pads[: axes.size], pads[axes.size :]
        pads = full
    begins, ends = np.split(pads, 2)
    if (pads < 0).any() or begins[:2].any() or ends[:2].any():
        return None
    return [int(count) for count in (*begins[2:], *ends[2:])]


def _reach_convs(
    graph: gs.Graph, tensor: gs.Tensor, between: list[gs.Node], convs: list[gs.Node]
) -> bool:
    """Collect all that reads `tensor`: whether it ends in nothing but explicitly padded Conv."""
    pending = [tensor]
    while pending:
        here = pending.pop()
        if is_any(here, graph.outputs) or not here.outputs:
            return False
        for node in here.outputs:
            reads_as_data = sum(other is here for other in node.inputs) == 1
            if not reads_as_data or node.inputs[0] is not here:
                return False
            if node.op == "Conv" and _pads_by_itself(node):
                convs.append(node)
            elif _keeps_zero(node):
                between.append(node)
                pending.append(node.outputs[0])
            else:
                return False
    return True


def _pads_by_itself(conv: gs.Node) -> bool:
    return str(conv.attrs.get("auto_pad", "NOTSET")) in {"NOTSET", "VALID"}


def _keeps_zero(node: gs.Node) -> bool:
    if node.op == "Clip":
        low, high = clip_bounds(node)
        return low <= 0 <= high
    return node.op in {QUANTIZE, DEQUANTIZE, "Relu", "Cast"}
