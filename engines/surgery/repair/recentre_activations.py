"""Activations on a symmetric int8 grid: TensorRT takes zero point 0 only.

An asymmetric grid also clips: ONNX Runtime deletes the Relu or Clip whose work the grid does, so
setting zero points to 0 alone breaks the network, and a symmetric grid that covers the old range has
up to twice its step. Here the values move instead of the grid, and the codes stay what they were.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass, SurgeryError
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
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
    """Move 8-bit pairs with any zero point to int8 with zero point 0 and the same scale.

    With scale s and zero point z (uint8: z - 128), x -> Q -> DQ becomes
    x -> Add z s -> Q -> DQ -> Subtract z s: every code stays (uint8: less 128), and so does what
    saturates. `AbsorbShifts` then moves both into the layers around.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Recentre in place; a site is a QuantizeLinear with its readers."""
        recentred = 0
        names = Names(graph)
        for node in nodes_of(graph, QUANTIZE):
            zero_point = zero_point_of(node)
            if zero_point is None or zero_point.dtype not in BYTE_TYPES or is_symmetric_int8(node):
                continue
            readers, scale = _readers(node), scale_of(node)
            shift = _shift(node, zero_point)
            for member in (node, *readers):
                set_grid(names, member, scale, np.zeros(scale.shape, np.int8))
            if shift:
                _add_before(graph, names, node, shift)
                for reader in readers:
                    _subtract_behind(graph, names, reader, shift)
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


def _shift(quantize: gs.Node, zero_point: np.ndarray) -> float:
    """The real value whose code moves to 0, less the one whose code is 0 now."""
    scale = scale_of(quantize)
    if scale.size != 1 or zero_point.size != 1:
        raise SurgeryError(
            f"{label(quantize)}: a per-channel zero point of an activation cannot be recentred; "
            "quantize activations per tensor"
        )
    middle = 128 if zero_point.dtype == np.uint8 else 0
    return (int(zero_point.item()) - middle) * float(scale.item())


def _add_before(graph: gs.Graph, names: Names, quantize: gs.Node, shift: float) -> None:
    source, dtype = quantize.inputs[0], scale_of(quantize).dtype
    stem = quantize.outputs[0].name
    shifted = gs.Variable(names.fresh(f"{stem}_shifted"), dtype, source.shape)
    offset = names.constant(f"{stem}_shift", np.asarray(shift, dtype))
    name = names.fresh(f"{stem}_shift_add")
    graph.nodes.append(gs.Node("Add", name, inputs=[source, offset], outputs=[shifted]))
    quantize.inputs[0] = shifted


def _subtract_behind(graph: gs.Graph, names: Names, dequantize: gs.Node, shift: float) -> None:
    offset = np.asarray(shift, scale_of(dequantize).dtype)
    subtract(graph, names, dequantize, 0, offset)


def subtract(graph: gs.Graph, names: Names, node: gs.Node, index: int, offset: np.ndarray) -> None:
    """Subtract the scalar `offset` from output `index` of `node`; the result keeps the name."""
    values = node.outputs[index]
    shifted = gs.Variable(names.fresh(f"{values.name}_shifted"), values.dtype, values.shape)
    node.outputs[index] = shifted
    constant = names.constant(f"{values.name}_shift", offset)
    name = names.fresh(f"{values.name}_shift_subtract")
    graph.nodes.append(gs.Node("Sub", name, inputs=[shifted, constant], outputs=[values]))
