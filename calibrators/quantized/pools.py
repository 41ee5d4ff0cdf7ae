"""Average pools that can run in INT8: classic TensorRT has kernels for those between Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import fx

from reptrt.calibrators.quantized.moving import LAYOUT

aten = torch.ops.aten

AVERAGES = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim)
_IMAGE_RANK = 4  # [N, C, H, W]


def find_pools(graph: fx.Graph, quantized: Collection[fx.Node]) -> Iterator[fx.Node]:
    """Average pools over height and width whose result is among the `quantized` values."""
    for node in graph.nodes:
        if _is_average(node) and _is_quantized(node, quantized):
            yield node


def _is_average(node: fx.Node) -> bool:
    """Whether it is a pool, or a mean that ONNX Runtime and TensorRT run as one."""
    if node.target is not aten.mean.dim:
        return node.target in AVERAGES
    source, dims = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(dims, Sequence)
    rank = source.meta["val"].dim()
    return rank == _IMAGE_RANK and {int(str(dim)) % rank for dim in dims} == {2, 3}


def _is_quantized(value: fx.Node, quantized: Collection[fx.Node]) -> bool:
    """Whether `value` is quantized, at once or where it lies elsewhere."""
    moved = [user for user in value.users if user.target in LAYOUT]
    return value in quantized or any(_is_quantized(user, quantized) for user in moved)
