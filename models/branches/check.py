"""Whether a merged layer computes what its branches did: both run on random numbers, in float64."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import fx

from reptrt.models.branches.linear_map import Convolution, LinearMap
from reptrt.models.constants import compute

logger = logging.getLogger(__name__)

LARGEST_ERROR = 1e-9
"""Over the largest output of a branch; float64 leaves some 1e-14."""


def computes_the_same(
    graph_module: fx.GraphModule,
    source: fx.Node,
    operands: Sequence[tuple[fx.Node, int]],
    layer: Convolution,
    kernel: LinearMap | None,
) -> bool:
    """Compare the sum of `operands`, (node, sign), with `layer` on one random `source`.

    Args:
        graph_module: owner of the nodes.
        source: what all operands are computed from, and constants.
        operands: of the sum.
        layer: what shall stand for it.
        kernel: the same as a map, where a smaller image will do: all borders of it are seen too.
    """
    values: dict[fx.Node, object] = {source: _image(source, kernel)}
    try:
        found = [(compute(graph_module, node, values), sign) for node, sign in operands]
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        logger.info("%s is not merged: it does not run in float64: %s", operands[0][0], error)
        return False
    outputs = [(value, sign) for value, sign in found if isinstance(value, torch.Tensor)]
    expected = torch.stack([sign * value for value, sign in outputs]).sum(0)
    actual = run(layer, values[source])  # type: ignore[arg-type]
    if actual.shape != expected.shape:
        return False
    largest = max(float(value.abs().max()) for value, _ in outputs)
    distance = float((actual - expected).abs().max())
    return distance <= LARGEST_ERROR * largest


def run(layer: Convolution, source: torch.Tensor) -> torch.Tensor:
    """Output of `layer` for images [N, in, height, width], or for vectors [..., in]."""
    if source.ndim != 4 or layer.weight.shape[1] * layer.groups != source.shape[1]:
        return F.linear(source, layer.weight[:, :, 0, 0], layer.bias)
    padded = F.pad(source, layer.padding)
    return F.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def _image(source: fx.Node, kernel: LinearMap | None) -> torch.Tensor:
    """Random [1, ...] like `source`, of as few pixels as show the kernel at every border."""
    value = source.meta["val"]
    shape = [int(side) for side in value.shape[1:]]
    if kernel is not None:
        sides = zip(shape[1:], (kernel.rows, kernel.cols), kernel.stride, strict=True)
        shape[1:] = [_fewest(*side) for side in sides]
    generator = torch.Generator().manual_seed(0)
    batch = value.shape[0] if isinstance(value.shape[0], int) else 1
    return torch.randn(batch, *shape, generator=generator).double().to(value.device)


def _fewest(side: int, offsets: Sequence[int], stride: int) -> int:
    """Pixels that a kernel fits in a few times, and a whole number of strides less than `side`."""
    enough = offsets[-1] - offsets[0] + 1 + 2 * stride
    return side if enough >= side else side - (side - enough) // stride * stride
