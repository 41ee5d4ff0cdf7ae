"""The one table of ONNX operators that commute with Q/DQ: they move, repeat or select values.

Two questions, two sets. `commutes`: is every output value one of the input's, so that a per-tensor
grid holds behind the operator too? `CARRIED_OPS`: does TensorRT itself carry Q/DQ across, so that a
pair in front of the operator makes the layer behind it INT8? It does not for a Resize: there the pair
belongs behind. Both are measured, operator by operator, in `tests/engines/test_commuting.py`.
`reptrt.calibrators.quantized.moving` is the same table for ATen operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # build kits read this table on devices without it
    import onnx_graphsurgeon as gs

MOVING_OPS = frozenset(
    (
        *("DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
CARRIED_OPS = MOVING_OPS | {"Cast", "Pad"}  # Pad adds zeros, which are on every symmetric grid


def commutes(node: gs.Node) -> bool:
    """Whether every output value of `node` is one of the values of its first input."""
    if node.op == "Resize":
        return str(node.attrs.get("mode", "nearest")) == "nearest"
    return node.op in MOVING_OPS
