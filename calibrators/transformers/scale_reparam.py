"""Scale reparameterization: calibrate per channel behind a LayerNorm, run per tensor.

RepQ-ViT (https://arxiv.org/abs/2212.08254), eq. 4 to 8, with s, z per channel and s~, z~ per tensor:

    r1 = s / s~,   r2 = z - z~
    LayerNorm:  gamma~ = gamma / r1,   beta~ = (beta + s r2) / r1
    Linear:     W~[:, c] = r1[c] W[:, c],   b~ = b - W (s r2)

The float network stays the same, and the per-tensor codes are the per-channel ones. Two choices are
ours: z~ is rounded to an integer, as an integer engine needs (the released code keeps the mean, whose
codes are not whole); and at 8 bits it is 128, so that what travels is symmetric INT8. A constant channel,
whose gain is 0, has no step and takes no part in the means: it moves to 0, and W times it into the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Protocol

import torch
from torch import fx

from reptrt.calibrators.quantized.moving import LAYOUT
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.quantizers import MIN_CHANNEL_RATIO, IntegerGrid, TensorQuantizer
from reptrt.models.graph import get_tensor

aten = torch.ops.aten

PADDING = (aten.pad.default, aten.constant_pad_nd.default)


class ChannelSite(Protocol):
    """A tensor that only quantized linears read, through one quantizer, and whose channels can be moved.

    Attributes:
        call: the quantizer's node.
        readers: the linears' nodes.
        keeps_zero: whether nothing may be added to a channel, so that all share the zero point.
        num_channels: along the last axis.
    """

    @property
    def call(self) -> fx.Node: ...  # noqa: D102

    @property
    def readers(self) -> tuple[fx.Node, ...]: ...  # noqa: D102

    @property
    def keeps_zero(self) -> bool: ...  # noqa: D102

    @property
    def num_channels(self) -> int: ...  # noqa: D102

    def channels_last(self, x: torch.Tensor) -> torch.Tensor:
        """What `call` reads as [..., channels]."""

    def spread(self, per_channel: torch.Tensor) -> torch.Tensor:
        """[channels] in a shape that multiplies what `call` reads."""

    def move(self, model: QuantizedModel, divisor: torch.Tensor, summand: torch.Tensor) -> None:
        """Let what makes the tensor x of `model` make (x + summand) / divisor, in place.

        Args:
            model: the site's, or a copy of it.
            divisor: [channels], > 0, float64.
            summand: [channels], float64; zeros where `keeps_zero`.
        """


@dataclass(frozen=True)
class NormSite:
    """A LayerNorm whose output only quantized linears read, all through one quantizer.

    Attributes:
        norm: the LayerNorm's node.
        call: the quantizer's node.
        readers: the linears' nodes.
        keeps_zero: whether zeros are added in between (windows that do not divide the map): a shift
            would not move them.
    """

    norm: fx.Node
    call: fx.Node
    readers: tuple[fx.Node, ...]
    keeps_zero: bool

    @property
    def num_channels(self) -> int:
        """Of the LayerNorm."""
        return int(self.norm.meta["val"].shape[-1])

    def channels_last(self, x: torch.Tensor) -> torch.Tensor:
        """They are."""
        return x

    def spread(self, per_channel: torch.Tensor) -> torch.Tensor:
        """Along the last axis."""
        return per_channel

    @torch.no_grad()
    def move(self, model: QuantizedModel, divisor: torch.Tensor, summand: torch.Tensor) -> None:
        """See `ChannelSite.move`."""
        gain, shift = (parameter(model, self.norm.args[i]) for i in (2, 3))
        shift.copy_((shift.double() + summand) / divisor)
        gain.copy_(gain.double() / divisor)


def has_norm_sites(graph: fx.Graph) -> bool:
    """Whether a linear of the float `graph` reads a LayerNorm."""
    return any(
        node.target is aten.linear.default and bool(_way_to_norm(node.args[0]))
        for node in graph.nodes
    )


def find_norm_sites(model: QuantizedModel) -> dict[fx.Node, NormSite]:
    """Quantizer call -> site, for every LayerNorm that can be reparameterized."""
    calls = [node for node in model.graph_module.graph.nodes if is_activation_call(node)]
    quantizers = [model.quantizer_at(call) for call in calls]
    sites = (_norm_site(model, call) for call in calls)
    return {
        site.call: site
        for site in sites
        if site is not None and quantizers.count(model.quantizer_at(site.call)) == 1
    }


def _norm_site(model: QuantizedModel, call: fx.Node) -> NormSite | None:
    way, readers = _way_to_norm(call.args[0]), tuple(call.users)
    if not way or any(len(node.users) > 1 for node in way):
        return None
    if not all(is_private_linear(model, reader) for reader in readers):
        return None
    return NormSite(way[-1], call, readers, any(_pads(node) for node in way))


def _way_to_norm(value: object) -> list[fx.Node]:
    """Nodes from `value` back to the LayerNorm whose channels it has, both included; else none."""
    way = []
    while isinstance(value, fx.Node):
        way.append(value)
        if _is_affine_norm(value):
            return way
        value = value.args[0] if _keeps_channels(value) else None
    return []


def _pads(node: fx.Node) -> bool:
    return node.target in PADDING and any(node.args[1])  # type: ignore[arg-type]  # amounts


def _keeps_channels(node: fx.Node) -> bool:
    """Whether `node` only moves values, and along other axes than the last, or adds zeros."""
    if node.target not in (*LAYOUT, *PADDING) or node.target in (aten.select.int, getitem):
        return False  # one token of many is too little to calibrate every channel on
    if _pads(node) and any(option not in ("constant", None, 0) for option in node.args[2:]):
        return False
    before, after = node.args[0], node.meta["val"]
    assert isinstance(before, fx.Node)
    last = before.meta["val"].ndim - 1
    if node.target is aten.permute.default:
        order = node.args[1]
        assert isinstance(order, (list, tuple))
        return order[-1] in (-1, last)
    if node.target in (aten.transpose.int, aten.roll.default):
        axes = node.args[2:] if node.target is aten.roll.default else node.args[1:3]
        flat = [a for axis in axes for a in (axis if isinstance(axis, (list, tuple)) else [axis])]
        return bool(flat) and not any(axis in (-1, last) for axis in flat)
    return bool(before.meta["val"].shape[-1] == after.shape[-1])


def _is_affine_norm(node: fx.Node) -> bool:
    """Whether `node` is a LayerNorm over the last axis with a gain and a shift of its own."""
    if node.target is not aten.layer_norm.default or len(node.args) < 4:
        return False
    parameters = node.args[2:4]
    shape = node.args[1]
    assert isinstance(shape, (list, tuple))
    return len(shape) == 1 and all(
        isinstance(p, fx.Node) and p.op == "get_attr" and len(p.users) == 1 for p in parameters
    )


def is_private_linear(model: QuantizedModel, node: fx.Node) -> bool:
    """Whether `node` is a quantized linear with a bias, whose parameters nothing else reads."""
    if node.target is not aten.linear.default or node.name not in model.placement.layers:
        return False
    layers = list(model.placement.layers.values())
    bias = node.args[2] if len(node.args) > 2 else None
    is_private = isinstance(bias, fx.Node) and len(bias.users) == 1
    return is_private and layers.count(model.placement.layers[node.name]) == 1


@torch.no_grad()
def reparameterize(
    model: QuantizedModel,
    site: ChannelSite,
    channels: TensorQuantizer,
    copies: Sequence[QuantizedModel] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold the per-channel quantizer `channels` of `site` into what makes the tensor and reads it, in place.

    The quantizer of `site` gets the step s~ and zero point z~; readers must not be quantized yet.

    Args:
        model: float weights change, the float network does not.
        copies: of `model`, to be changed alike.
        site: of `model`.
        channels: calibrated on the site's tensor, axis -1, on an unsigned grid.

    Returns:
        Factor and summand, as `ChannelSite.spread` has them: the tensor that the site's quantizer reads
        from now on is x * factor + summand.
    """
    scale, zero_point = channels.scale.double(), channels.zero_point.double()
    is_live = scale > 2 * MIN_CHANNEL_RATIO * scale.max()
    target_scale = scale[is_live].mean()
    target_zero_point = _target_zero_point(channels.grid, zero_point[is_live])
    divisor = torch.where(is_live, scale / target_scale, 1.0)
    still = 0.0 if site.keeps_zero else zero_point
    summand = scale * torch.where(is_live, zero_point - target_zero_point, still)
    for each in (model, *copies):
        move_channels(each, site, divisor, summand)
    quantizer = model.quantizer_at(site.call)
    quantizer.grid = channels.grid
    quantizer.scale.copy_(target_scale)
    quantizer.zero_point.fill_(target_zero_point)
    found = (1 / divisor).to(channels.scale), (summand / divisor).to(channels.scale)
    return site.spread(found[0]), site.spread(found[1])


@torch.no_grad()
def move_channels(
    model: QuantizedModel, site: ChannelSite, divisor: torch.Tensor, summand: torch.Tensor
) -> None:
    """Turn the tensor x of `site` into (x + summand) / divisor, and its readers back, in place.

    Args: see `ChannelSite.move`; the float network does not change.
    """
    site.move(model, divisor, summand)
    for reader in site.readers:
        weight = model.weight_of(model.placement.layers[reader.name])
        parameter(model, reader.args[2]).sub_(weight.double() @ summand)
        weight.copy_(weight.double() * divisor)


def parameter(model: QuantizedModel, node: object) -> torch.Tensor:
    """The tensor that the `get_attr` node reads, in `model`."""
    assert isinstance(node, fx.Node)
    return get_tensor(model.graph_module, node)


def _target_zero_point(grid: IntegerGrid, zero_points: torch.Tensor) -> float:
    if grid.num_bits == 8:
        return grid.offset
    return min(max(round(float(zero_points.mean())), grid.quant_min), grid.quant_max)


def unsigned_per_channel(num_bits: int, site: ChannelSite) -> TensorQuantizer:
    """An uncalibrated per-channel quantizer for the tensor of `site`."""
    return TensorQuantizer(IntegerGrid.unsigned(num_bits), site.num_channels, axis=-1)
