"""Operators of a traced graph read as linear maps of one tensor: convolutions, norms, averages, pads, gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import getitem
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from reptrt.models.branches.linear_map import LinearMap, compose, scaling
from reptrt.models.constants import Constants, compute

aten = torch.ops.aten

BATCH_NORM = aten._native_batch_norm_legit_no_training.default
CHANNELS_OF_IMAGES, CHANNELS_LAST = 1, -1
"""Axis of the channels: of convolutions, and of linear layers."""


@dataclass(frozen=True)
class Step:
    """One operator, or a few that belong together, as a map of what it reads.

    Attributes:
        node: that computes it.
        source: what it reads; everything else is constant.
        inside: operators between `source` and `node`.
        read: the map, in float64.
        border: whether the pixels around the source, which `node` adds, are what `inner` would be
            there; None where they are zeros.
        is_layer: it multiplies by a weight.
        is_norm: it is a BatchNorm.
    """

    node: fx.Node
    source: fx.Node
    read: Callable[[], LinearMap]
    inside: tuple[fx.Node, ...] = ()
    border: Callable[[LinearMap], bool] | None = None
    is_layer: bool = False
    is_norm: bool = False

    @cached_property
    def map(self) -> LinearMap:
        """What `read` returns, read once."""
        return self.read()


class Reader:
    """Reads the nodes of one graph.

    Args:
        graph_module: traced network.
        constants: of it.
        axis: of the channels: `CHANNELS_OF_IMAGES` or `CHANNELS_LAST`.
    """

    def __init__(self, graph_module: fx.GraphModule, constants: Constants, axis: int) -> None:
        self._graph_module, self._constants, self._axis = graph_module, constants, axis

    def step(self, node: fx.Node) -> Step | None:
        """`node` as a map of the tensor that it reads; None where it is none."""
        if node.op != "call_function":
            return None
        rule = _RULES.get(node.target)
        return None if rule is None else rule(self, node)

    def _convolution(self, node: fx.Node) -> Step | None:
        def read() -> LinearMap:
            weight, bias = self._weights(node)
            stride, padding, dilation, groups = _conv_arguments(node)
            starts = [-pad for pad in padding]
            spans = [d * side for d, side in zip(dilation, weight.shape[2:], strict=True)]
            rows, cols = (
                tuple(range(start, start + span, d))
                for start, span, d in zip(starts, spans, dilation, strict=True)
            )
            return LinearMap(weight, bias, rows, cols, (stride[0], stride[1]), groups)

        if self._axis != CHANNELS_OF_IMAGES or not self._has_constant_weights(node):
            return None
        return Step(node, _node(node.args[0]), read, is_layer=True)

    def _linear(self, node: fx.Node) -> Step | None:
        def read() -> LinearMap:
            weight, bias = self._weights(node)
            return LinearMap(weight[:, :, None, None], bias)

        if self._axis != CHANNELS_LAST or not self._has_constant_weights(node):
            return None
        return Step(node, _node(node.args[0]), read, is_layer=True)

    def _norm(self, item: fx.Node) -> Step | None:
        norm, index = item.args
        if index != 0 or not isinstance(norm, fx.Node) or norm.target is not BATCH_NORM:
            return None
        if len(norm.users) > 1 or self._channel_axis(item) != 1:
            return None

        def read() -> LinearMap:
            gamma, beta, mean, variance = (self._constants.tensor(a) for a in norm.args[1:5])
            assert mean is not None
            assert variance is not None
            gain = torch.rsqrt(variance + float(norm.args[6]))  # type: ignore[arg-type]
            gain = gain if gamma is None else gain * gamma
            return scaling(gain, (beta if beta is not None else 0.0) - mean * gain)

        known = all(a is None or a in self._constants for a in norm.args[1:5])
        step = Step(item, _node(norm.args[0]), read, (norm,), is_norm=True)
        return step if known and norm.args[3] is not None else None

    def _gain(self, node: fx.Node) -> Step | None:
        """X times, plus or minus a constant, or divided by one."""
        if node.kwargs or len(node.args) != 2:
            return None
        first, second = node.args
        if first in self._constants and node.target in (aten.mul.Tensor, aten.add.Tensor):
            first, second = second, first
        value = self._per_channel(node, second)
        if value is None or not isinstance(first, fx.Node) or _shape(first) != _shape(node):
            return None
        ones, zeros = torch.ones_like(value), torch.zeros_like(value)
        maps: dict[object, tuple[torch.Tensor, torch.Tensor]] = {
            aten.mul.Tensor: (value, zeros),
            aten.div.Tensor: (1 / value, zeros),
            aten.add.Tensor: (ones, value),
            aten.sub.Tensor: (ones, -value),
        }
        return Step(node, first, lambda: scaling(*maps[node.target]))

    def _average(self, node: fx.Node) -> Step | None:
        if self._axis != CHANNELS_OF_IMAGES:
            return None
        defaults: tuple[Any, ...] = (None, None, [], [0, 0], False, True, None)
        stated: tuple[Any, ...] = (*node.args, *defaults[len(node.args) :])
        kernel, stride, padding, ceil, counts, divisor = stated[1:]
        height, width = _pair(kernel)
        (top, left), steps = _pair(padding), _pair(stride or kernel)
        if ceil or divisor is not None or (not counts and (top or left)):
            return None

        def read() -> LinearMap:
            channels = int(_shape(node)[1])
            weight = torch.full(
                (channels, 1, height, width), 1 / (height * width),
                dtype=torch.float64, device=node.meta["val"].device,
            )  # fmt: skip
            rows, cols = range(-top, height - top), range(-left, width - left)
            return LinearMap(
                weight, weight.new_zeros(channels), tuple(rows), tuple(cols), steps, channels
            )

        return Step(node, _node(node.args[0]), read)

    def _pad(self, node: fx.Node) -> Step | None:
        """Zeros around an image; a crop is none."""
        pads = _pads(node)
        if self._axis != CHANNELS_OF_IMAGES or pads is None:
            return None
        return Step(node, _node(node.args[0]), lambda: _shift(node, pads))

    def _border(self, node: fx.Node) -> Step | None:
        """A padded image whose border is written over, as DBB pads with what a norm makes of zeros.

        Diverse Branch Block (https://arxiv.org/abs/2103.13425).
        """
        first: object = node
        while isinstance(first, fx.Node) and first.target is aten.slice_scatter.default:
            first = first.args[0]
        if not isinstance(first, fx.Node) or first.target not in _PADS:
            return None
        pads, source = _pads(first), _node(first.args[0])
        inside = _between(source, node, self._constants)
        if self._axis != CHANNELS_OF_IMAGES or pads is None or inside is None:
            return None

        def border(inner: LinearMap) -> bool:
            size = [int(side) for side in _shape(source)[2:]]
            generator = torch.Generator().manual_seed(0)
            batch = _shape(source)[0]
            count = batch if isinstance(batch, int) else 1
            image = torch.randn(count, len(inner.bias), *size, generator=generator).double()
            image = image.to(inner.bias.device)
            found = compute(self._graph_module, node, {source: image})
            bias = inner.bias.view(1, -1, 1, 1)
            expected = F.pad(image - bias, pads) + bias
            return isinstance(found, torch.Tensor) and torch.allclose(found, expected)

        return Step(node, source, lambda: _shift(node, pads), inside, border)

    def _weights(self, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self._constants.tensor(node.args[1])
        assert weight is not None  # by `_has_constant_weights`
        bias = self._constants.tensor(node.args[2]) if len(node.args) > 2 else None
        return weight, weight.new_zeros(len(weight)) if bias is None else bias

    def _has_constant_weights(self, node: fx.Node) -> bool:
        return all(value is None or value in self._constants for value in node.args[1:3])

    def _channel_axis(self, node: fx.Node) -> int:
        return self._axis % len(_shape(node))

    def _per_channel(self, node: fx.Node, value: object) -> torch.Tensor | None:
        """Constant `value` [channels] where it is the same for all pixels of `node`."""
        if not isinstance(value, int | float) and value not in self._constants:
            return None
        shape, axis = _shape(node), self._channel_axis(node)
        stated = tuple(value.meta["val"].shape) if isinstance(value, fx.Node) else ()
        sides = (1,) * (len(shape) - len(stated)) + stated
        if any(side != 1 for place, side in enumerate(sides) if place != axis):
            return None
        tensor = self._constants.tensor(value)
        if tensor is None or len(sides) > len(shape):
            return None
        channels = int(shape[axis])
        return tensor.to(node.meta["val"].device).double().reshape(-1).expand(channels)


def follow(step: Step, inner: LinearMap, *, sizes: bool = True) -> LinearMap | None:
    """`step` behind `inner`, both from one source; None where borders would not be exact.

    A step that reads beyond its source finds zeros there, so `inner` must be zero outside too: a map
    without bias from pixel to pixel. Where the step writes its own border, that must be what `inner`
    makes of zeros.
    """
    outer = step.map
    if step.border is not None:
        return compose(outer, inner) if inner.is_pointwise and step.border(inner) else None
    if sizes:
        source, output = _shape(step.source)[2:], _shape(step.node)[2:]
        is_zero_outside = inner.is_pointwise and not inner.bias.any()
        if outer.reads_outside([*map(int, source)], [*map(int, output)]) and not is_zero_outside:
            return None
    return compose(outer, inner)


def _shift(node: fx.Node, pads: list[int]) -> LinearMap:
    channels = int(_shape(node)[1])
    ones = torch.ones(channels, dtype=torch.float64, device=node.meta["val"].device)
    left, _, top, _ = pads
    return LinearMap(ones.view(-1, 1, 1, 1), 0 * ones, (-top,), (-left,), (1, 1), channels)


def _pads(node: fx.Node) -> list[int] | None:
    """(left, right, top, bottom) of zeros around images; None where they are no zeros, or a crop."""
    pads: list[Any] = [*node.args[1]] if isinstance(node.args[1], list | tuple) else []
    pads += [0] * (4 - len(pads))
    fits = len(pads) == 4 and all(isinstance(p, int) and p >= 0 for p in pads)
    others = [*node.args[2:], *node.kwargs.values()]
    are_zeros = all(value in ("constant", None, 0) for value in others)
    return [int(p) for p in pads] if fits and are_zeros else None


def _between(source: fx.Node, node: fx.Node, constants: Constants) -> tuple[fx.Node, ...] | None:
    """What is computed between `source` and `node`; None where it reads another image."""
    found: dict[fx.Node, None] = {}
    pending = [*node.all_input_nodes]
    while pending:
        current = pending.pop()
        if current is source or current in constants or current in found:
            continue
        if isinstance(current.meta.get("val"), torch.SymInt):
            continue  # an open batch
        if current.target not in _BORDERS:
            return None
        found[current] = None
        pending += current.all_input_nodes
    return tuple(found)


def _conv_arguments(node: fx.Node) -> tuple[list[int], list[int], list[int], int]:
    defaults: tuple[Any, ...] = ([1, 1], [0, 0], [1, 1], 1)
    stated: tuple[Any, ...] = (*node.args[3:], *defaults[len(node.args[3:]) :])
    sides = [[*_pair(value)] for value in stated[:3]]
    return sides[0], sides[1], sides[2], int(stated[3])


def _pair(value: Any) -> tuple[int, int]:
    sides = [*value] if isinstance(value, list | tuple) else [value]
    return int(sides[0]), int(sides[-1])


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


_PADS = (aten.constant_pad_nd.default, aten.pad.default)
_BORDERS = (
    *_PADS,
    aten.slice.Tensor,
    aten.slice_scatter.default,
    aten.copy.default,
    aten.expand.default,
)

_RULES: dict[object, Callable[[Reader, fx.Node], Step | None]] = {
    aten.conv2d.default: Reader._convolution,
    aten.linear.default: Reader._linear,
    **dict.fromkeys(
        (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor), Reader._gain
    ),
    getitem: Reader._norm,
    aten.avg_pool2d.default: Reader._average,
    **dict.fromkeys(_PADS, Reader._pad),
    aten.slice_scatter.default: Reader._border,
}
