"""Read and write the pieces of QuantizeLinear and DequantizeLinear nodes.

A *grid* is what both nodes share: real value = (code - zero_point) * scale.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import SurgeryError
from reptrt.engines.surgery.names import Names

QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
BYTE_TYPES = (np.dtype(np.int8), np.dtype(np.uint8))


def nodes_of(graph: gs.Graph, *ops: str) -> list[gs.Node]:
    """The nodes of `graph` whose operator is one of `ops`, in graph order."""
    return [node for node in graph.nodes if node.op in ops]


def label(node: gs.Node) -> str:
    """How to name `node` to a person; exporters often leave the node name empty."""
    return f"{node.op} '{node.name or node.outputs[0].name}'"


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes `tensor`, or None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def input_at(node: gs.Node, index: int) -> gs.Tensor | None:
    """Input `index` of `node`, or None where the optional input is left out."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]


def constant_at(node: gs.Node, index: int) -> np.ndarray | None:
    """The value of constant input `index`, or None where it is computed or left out."""
    tensor = input_at(node, index)
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def scale_of(node: gs.Node) -> np.ndarray:
    """The scale of a Q or DQ node, shape [] or [1] or [channels].

    Raises:
        SurgeryError: the scale is computed at run time.
    """
    scale = constant_at(node, 1)
    if scale is None:
        raise SurgeryError(
            f"{label(node)}: its scale is computed at run time; TensorRT wants an initializer, so "
            "quantize statically"
        )
    return scale


def zero_point_of(node: gs.Node) -> np.ndarray | None:
    """The zero point of a Q or DQ node, or None where it is left out.

    Raises:
        SurgeryError: the zero point is computed at run time.
    """
    if input_at(node, 2) is None:
        return None
    zero_point = constant_at(node, 2)
    if zero_point is None:
        raise SurgeryError(
            f"{label(node)}: its zero point is computed at run time; TensorRT wants an "
            "initializer, so quantize statically"
        )
    return zero_point


def has_blocks(node: gs.Node) -> bool:
    """Whether a Q or DQ node uses one scale per block (weight-only formats: left alone)."""
    return bool(node.attrs.get("block_size", 0))


def is_symmetric_int8(node: gs.Node) -> bool:
    """Whether a Q or DQ node has an explicit int8 zero point that is 0 everywhere."""
    zero_point = zero_point_of(node)
    return zero_point is not None and zero_point.dtype == np.int8 and not zero_point.any()


def same_grid(first: gs.Node, second: gs.Node) -> bool:
    """Whether two Q/DQ nodes map codes to real values in the same way."""
    zero, other_zero = zero_point_of(first), zero_point_of(second)
    if zero is None or other_zero is None:
        zeros_agree = zero is other_zero
    else:
        zeros_agree = np.array_equal(zero, other_zero)
    return zeros_agree and np.array_equal(scale_of(first), scale_of(second))


def set_grid(names: Names, node: gs.Node, scale: np.ndarray, zero_point: np.ndarray) -> None:
    """Give a Q or DQ node its own new scale and zero point; other readers keep the old ones."""
    stem = node.outputs[0].name
    data = node.inputs[0]
    node.inputs = [
        data,
        names.constant(f"{stem}_scale", scale),
        names.constant(f"{stem}_zero_point", zero_point),
    ]
    if node.op == QUANTIZE:
        node.attrs.pop("output_dtype", None)  # the zero point says it
        node.outputs[0].dtype = zero_point.dtype


def along_axis(values: np.ndarray, node: gs.Node, rank: int) -> np.ndarray:
    """Reshape per-channel `values` so that they broadcast over the data of a Q/DQ `node`."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[node.attrs.get("axis", 1)] = values.size
    return values.reshape(shape)
