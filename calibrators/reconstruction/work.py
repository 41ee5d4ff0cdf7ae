"""What a part of a network costs: how large a step may be, how much a block may learn, how far a run has come.

All is counted on the graph, not timed: the same run takes the same decisions anywhere, also when it is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from reptrt.calibrators.quantized.placement import TRANSPOSED, WEIGHTED
from reptrt.calibrators.quantized.run_nodes import concrete_size

aten = torch.ops.aten

ELEMENT = 24
"""Multiply-accumulates in whose time one operator reads and writes one element (docs/effort.md)."""


def work(nodes: Sequence[fx.Node]) -> int:
    """Time of running `nodes` on one image, in multiply-accumulates."""
    return sum(_macs(node) + ELEMENT * elements(node) for node in nodes)


def positions(nodes: Sequence[fx.Node]) -> int:
    """Pixels or tokens of one image on the largest map that a layer of `nodes` makes; 1 without a layer."""
    layers = [node for node in nodes if node.target in (*WEIGHTED, *TRANSPOSED)]
    return max((elements(node) // _channels(node) for node in layers), default=1)


def elements(node: fx.Node) -> int:
    """Elements of what `node` makes of one image; 0 where that is no tensor."""
    shape = getattr(node.meta.get("val"), "shape", None)
    return 0 if shape is None else math.prod(concrete_size(side, 1) for side in shape)


def _channels(layer: fx.Node) -> int:
    shape = layer.meta["val"].shape
    return int(shape[-1] if layer.target is aten.linear.default else shape[1])


def _macs(node: fx.Node) -> int:
    """Of a convolution or linear; 0 for others."""
    if node.target not in (*WEIGHTED, *TRANSPOSED):
        return 0
    source, weight = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    outer = source if node.target in TRANSPOSED else node
    return elements(outer) * math.prod(int(side) for side in weight.meta["val"].shape[1:])
