"""Linear maps of an image: what a convolution computes, and how such maps add up and follow each other.

    y[p] = bias + sum over (i, j) of weight[:, :, i, j] x[stride p + (rows[i], cols[j])],   x = 0 outside

Taps are listed by their places, so kernels of any size, padding and dilation share one form. A linear
layer is a map with one tap. All tensors are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Offsets = tuple[int, ...]


@dataclass(frozen=True)
class LinearMap:
    """See the formula above.

    Attributes:
        weight: [out, in / groups, rows, cols].
        bias: [out].
        rows: where the taps lie, in pixels from the place that `stride` names, ascending.
        cols: the same to the right.
        stride: of the output, in pixels of the input.
        groups: of channels that do not mix.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    rows: Offsets = (0,)
    cols: Offsets = (0,)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def in_channels(self) -> int:
        """Channels of what it reads."""
        return self.weight.shape[1] * self.groups

    @property
    def is_pointwise(self) -> bool:
        """Every pixel is computed from the one at its place."""
        return self.rows == self.cols == (0,) and self.stride == (1, 1)

    @property
    def is_depthwise(self) -> bool:
        """No channel reads another."""
        return self.groups == len(self.weight) == self.in_channels

    @property
    def num_products(self) -> int:
        """Multiplications for one pixel of the output."""
        return self.weight.numel()

    def reads_outside(self, source: Sequence[int], output: Sequence[int]) -> bool:
        """Whether one of `output` (height, width) pixels reads beyond the `source` pixels."""
        sides = zip((self.rows, self.cols), self.stride, source, output, strict=True)
        return any(o[0] < 0 or s * (out - 1) + o[-1] >= src for o, s, src, out in sides)


def identity(channels: int, like: torch.Tensor) -> LinearMap:
    """Y = x."""
    return scaling(like.new_ones(channels, dtype=torch.float64))


def scaling(gain: torch.Tensor, shift: torch.Tensor | None = None) -> LinearMap:
    """Channel c becomes gain[c] x + shift[c]."""
    shift = torch.zeros_like(gain) if shift is None else shift
    return LinearMap(gain.view(-1, 1, 1, 1), shift, groups=len(gain))


def add(maps: Sequence[LinearMap]) -> LinearMap:
    """The sum of maps that read the same channels with one stride.

    Raises:
        ValueError: strides or channels differ.
    """
    first = maps[0]
    shapes = {(m.stride, len(m.weight), m.in_channels) for m in maps}
    if len(shapes) > 1:
        raise ValueError(f"maps of different strides or channels: {sorted(shapes)}")
    groups = math.gcd(*(m.groups for m in maps))
    rows = tuple(sorted({offset for m in maps for offset in m.rows}))
    cols = tuple(sorted({offset for m in maps for offset in m.cols}))
    wide = [_in_groups(m, groups) for m in maps]
    total = wide[0].new_zeros(*wide[0].shape[:2], len(rows), len(cols))
    for m, weight in zip(maps, wide, strict=True):
        at_row = torch.tensor([rows.index(offset) for offset in m.rows], device=total.device)
        at_col = torch.tensor([cols.index(offset) for offset in m.cols], device=total.device)
        total[:, :, at_row[:, None], at_col] += weight
    bias = torch.stack([m.bias for m in maps]).sum(0)
    return LinearMap(total, bias, rows, cols, first.stride, groups)


def compose(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """`outer` of `inner`, as far as `outer` reads only where the formula of `inner` holds."""
    groups = inner.groups if outer.is_depthwise else math.gcd(outer.groups, inner.groups)
    behind = outer.weight if outer.is_depthwise else _in_groups(outer, groups)
    front = _in_groups(inner, groups)
    (down, right), (old_rows, old_cols) = inner.stride, (inner.rows, inner.cols)
    rows = tuple(sorted({down * offset + own for offset in outer.rows for own in old_rows}))
    cols = tuple(sorted({right * offset + own for offset in outer.cols for own in old_cols}))
    total = front.new_zeros(len(behind), front.shape[1], len(rows), len(cols))
    for i, row in enumerate(outer.rows):
        at_row = torch.tensor([rows.index(down * row + own) for own in old_rows])[:, None]
        for j, col in enumerate(outer.cols):
            at_col = torch.tensor([cols.index(right * col + own) for own in old_cols])
            total[:, :, at_row, at_col] += _mix(behind[..., i, j], front, groups)
    bias = _mix(behind.sum((2, 3)), inner.bias.view(-1, 1, 1, 1), groups).flatten() + outer.bias
    stride = (outer.stride[0] * down, outer.stride[1] * right)
    return LinearMap(total, bias, rows, cols, stride, groups)


def _mix(factors: torch.Tensor, front: torch.Tensor, groups: int) -> torch.Tensor:
    """Channels of `front` [middle, ...] mixed by `factors` [out, middle / groups], or only scaled."""
    if factors.shape[1] == 1 and len(factors) == len(front):
        return factors.view(-1, *[1] * (front.ndim - 1)) * front
    blocks = factors.view(groups, -1, factors.shape[1]) @ front.reshape(
        groups, factors.shape[1], -1
    )
    return blocks.reshape(-1, *front.shape[1:])


def _in_groups(m: LinearMap, groups: int) -> torch.Tensor:
    """Weight of `m` for fewer groups, with zeros where channels did not mix before."""
    if groups == m.groups:
        return m.weight
    out, per_group, *taps = m.weight.shape
    inside = m.groups // groups
    wide = m.weight.new_zeros(groups, inside, out // m.groups, inside, per_group, *taps)
    index = torch.arange(inside, device=wide.device)
    narrow = m.weight.view(groups, inside, out // m.groups, per_group, *taps)
    wide[:, index, :, index] = narrow.transpose(0, 1)
    return wide.reshape(out, inside * per_group, *taps)


@dataclass(frozen=True)
class Convolution:
    """The arguments of the convolution that a map is.

    Attributes:
        weight: [out, in / groups, kh, kw].
        bias: [out].
        padding: zeros (left, right, top, bottom) of the input.
        stride: down, right.
        dilation: down, right.
        groups: see `LinearMap`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    padding: tuple[int, int, int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def is_symmetric(self) -> bool:
        """The same padding on both sides, as `conv2d` itself can add it."""
        left, right, top, bottom = self.padding
        return left == right and top == bottom


def as_convolution(
    m: LinearMap, source: Sequence[int], output: Sequence[int]
) -> Convolution | None:
    """`m` from `source` to `output` (height, width) pixels; None where no convolution makes those."""
    rows, cols = _grid(m.rows), _grid(m.cols)
    weight = m.weight.new_zeros(*m.weight.shape[:2], len(rows), len(cols))
    at_row = torch.tensor([rows.index(offset) for offset in m.rows])[:, None]
    weight[:, :, at_row, torch.tensor([cols.index(offset) for offset in m.cols])] = m.weight
    sides = zip((rows, cols), m.stride, source, output, strict=True)
    pads = [_pads(*side) for side in sides]
    if None in pads:
        return None
    (top, bottom), (left, right) = pads  # type: ignore[misc]  # no None is left
    dilation = tuple(grid[1] - grid[0] if len(grid) > 1 else 1 for grid in (rows, cols))
    padding = (left, right, top, bottom)
    return Convolution(weight, m.bias, padding, m.stride, dilation, m.groups)  # type: ignore[arg-type]


def _grid(offsets: Offsets) -> range:
    """Evenly spaced places that hold all taps; the first is at 0 or before."""
    places = [*offsets, 0] if offsets[0] > 0 else [*offsets]
    step = math.gcd(*(place - min(places) for place in places)) or 1
    return range(min(places), max(places) + 1, step)


def _pads(places: range, stride: int, source: int, output: int) -> tuple[int, int] | None:
    """Zeros before and after `source` pixels, for `output` pixels; equal ones where those will do."""
    before, reach = -places[0], places[-1] - places[0]
    for after in (before, stride * (output - 1) + places[-1] + 1 - source, 0):
        if after >= 0 and (source + before + after - reach - 1) // stride + 1 == output:
            return before, after
    return None
