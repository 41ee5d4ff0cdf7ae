"""Moments of the rows that a layer multiplies its weight with, for linears and convolutions alike.

A convolution is a product too, of patches (im2col): each output position is a row, of as many numbers
as a kernel has. Neighbouring positions say nearly the same, so a sample of them is enough, and no
more than a sample is ever cut out of the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from reptrt.calibrators.importance import draw_positions

aten = torch.ops.aten

MOST_ROWS = 8192
"""Of one layer, over all images; 1,728 numbers a row (a 3x3 kernel on 192 channels) are the most of RepVGG-A0."""

_STRIDE, _PADDING, _DILATION, _GROUPS = 3, 4, 5, 6  # positions among the arguments of a convolution


@dataclass(frozen=True)
class InputMoments:
    """Of the rows [in] that each group of a layer reads; a linear is one group. In float64.

    Attributes:
        mean: of the quantized rows, [groups, in].
        float_mean: of the same rows before they were quantized, [groups, in].
        covariance: of the quantized rows, [groups, in, in]: what a change of the weight does to the
            outputs, once the bias has taken their mean back.
    """

    mean: torch.Tensor
    float_mean: torch.Tensor
    covariance: torch.Tensor


@torch.no_grad()
def input_moments(
    layer: fx.Node,
    weight: torch.Tensor,
    quantized: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor],
    generator: torch.Generator,
    importance: torch.Tensor | None = None,
) -> InputMoments:
    """Measure what `layer` reads.

    Args:
        layer: a convolution or linear of the graph.
        weight: its weight [out, in / groups, ...].
        quantized: its input, batch by batch.
        before: the same tensors before their quantizer.
        generator: draws the positions.
        importance: of what it makes, without the axis of images: positions are drawn by it; None: all alike.
    """
    num_images = sum(len(batch) for batch in quantized)
    rows, float_rows = [], []
    for batch, float_batch in zip(quantized, before, strict=True):
        count = -(-MOST_ROWS * len(batch) // num_images)
        positions = _Positions(layer, weight, batch, count, generator, importance)
        rows.append(positions.rows(batch))
        float_rows.append(positions.rows(float_batch))
    joined = torch.cat(rows, 1)
    mean = joined.mean(1, dtype=torch.float64)
    centred = joined - mean[:, None].to(joined)
    covariance = (centred.transpose(1, 2) @ centred).double() / joined.shape[1]
    return InputMoments(mean, torch.cat(float_rows, 1).mean(1, dtype=torch.float64), covariance)


class _Positions:
    """Outputs of a layer, drawn at random: where their rows lie in what it reads."""

    def __init__(
        self,
        layer: fx.Node,
        weight: torch.Tensor,
        x: torch.Tensor,
        most: int,
        generator: torch.Generator,
        importance: torch.Tensor | None = None,
    ) -> None:
        self._kernel = tuple(weight.shape[2:])
        self._is_linear = layer.target is aten.linear.default
        axes = len(self._kernel)
        stride, self._padding, self._dilation = (
            _numbers(layer, place, default, axes)
            for place, default in ((_STRIDE, 1), (_PADDING, 0), (_DILATION, 1))
        )
        self._groups = int(layer.args[_GROUPS]) if len(layer.args) > _GROUPS else 1  # type: ignore[arg-type]
        padded = [side + 2 * pad for side, pad in zip(x.shape[2:], self._padding, strict=False)]
        reach = [d * (k - 1) for d, k in zip(self._dilation, self._kernel, strict=True)]
        sides = [(p - r - 1) // s + 1 for p, r, s in zip(padded, reach, stride, strict=False)]
        sizes = list(x.shape[:-1]) if self._is_linear else [len(x), *sides]
        channels = -1 if self._is_linear else 0
        chances = None if importance is None else importance.mean(channels)
        drawn = draw_positions(sizes, most, chances, generator).to(x.device)
        self._drawn = drawn
        self._corner: list[torch.Tensor] = []
        if not self._is_linear:
            image, *places = torch.unravel_index(drawn, tuple(sizes))
            self._image = image
            self._corner = [place * step for place, step in zip(places, stride, strict=True)]

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [groups, count, in] of `x`."""
        if self._is_linear:
            return x.reshape(1, -1, x.shape[-1])[:, self._drawn]
        padded = F.pad(x, [pad for pad in reversed(self._padding) for _ in range(2)])
        channels_last = padded.movedim(1, -1)
        taps = []
        for tap in itertools.product(*map(range, self._kernel)):
            where = [c + t * d for c, t, d in zip(self._corner, tap, self._dilation, strict=True)]
            index = (self._image, *where)
            taps.append(channels_last[index])
        found = torch.stack(taps, -1)  # [count, channels, taps]
        return found.reshape(len(found), self._groups, -1).transpose(0, 1)


def _numbers(layer: fx.Node, place: int, default: int, axes: int) -> list[int]:
    """Argument `place` of a convolution, one number for each of `axes`."""
    found: Any = layer.args[place] if len(layer.args) > place else default
    numbers = [int(n) for n in found] if isinstance(found, (list, tuple)) else [int(found)]
    return numbers * axes if len(numbers) == 1 else numbers
