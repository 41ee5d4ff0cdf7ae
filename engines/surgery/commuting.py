"""Operators that only move or select values, so that they commute with one per-tensor grid."""

from __future__ import annotations

import onnx_graphsurgeon as gs

MOVING_OPS = frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def commutes(node: gs.Node) -> bool:
    """Whether every output value of `node` is one of the values of its first input."""
    if node.op == "Resize":
        return str(node.attrs.get("mode", "nearest")) == "nearest"
    return node.op in MOVING_OPS
