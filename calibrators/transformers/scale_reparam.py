"""Scale reparameterization: calibrate per channel behind a LayerNorm, run per tensor.

RepQ-ViT (https://arxiv.org/abs/2212.08254), eq. 4 to 8, with s, z per channel and s~, z~ per tensor:

    r1 = s / s~,   r2 = z - z~
    LayerNorm:  gamma~ = gamma / r1,   beta~ = (beta + s r2) / r1
    Linear:     W~[:, c] = r1[c] W[:, c],   b~ = b - W (s r2)

The float network stays the same, and the per-tensor codes are the per-channel ones. Two choices are
ours: z~ is rounded to an integer, as an integer engine needs (the released code keeps the mean, whose
codes are not whole); and at 8 bits it is 128, so that what travels is symmetric INT8. A constant channel,
whose gain is 0, has no step and takes no part in the means: it moves to 0, and W times it into the bias.

By the same algebra a key or a value of an attention moves to the middle of its range
(`CentredOperand`): a constant on all keys moves every score of a query alike, and softmax does not see it;
on all values it moves the product alike, since probabilities sum to 1, and the projection's bias takes
it back. With quantized probabilities, whose sum is not quite 1, the latter is an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem

import torch
from torch import fx

from reptrt.calibrators.quantized.moving import LAYOUT
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.quantizers import MIN_CHANNEL_RATIO, IntegerGrid, TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import concrete_size, run_nodes
from reptrt.models.graph import get_tensor

aten = torch.ops.aten

PADDING = (aten.pad.default, aten.constant_pad_nd.default)


@dataclass(frozen=True)
class NormSite:
    """A LayerNorm whose output only quantized linears read, all through one quantizer.

    Attributes:
        norm: the LayerNorm's node.
        call: the quantizer's node.
        readers: the linears' nodes.
        is_padded: whether zeros are added in between (windows that do not divide the map): a shift
            would not move them, so channels share the zero point there.
    """

    norm: fx.Node
    call: fx.Node
    readers: tuple[fx.Node, ...]
    is_padded: bool


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
    if not all(_is_private_linear(model, reader) for reader in readers):
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


def _is_private_linear(model: QuantizedModel, node: fx.Node) -> bool:
    """Whether `node` is a quantized linear with a bias, whose parameters nothing else reads."""
    if node.target is not aten.linear.default or node.name not in model.placement.layers:
        return False
    layers = list(model.placement.layers.values())
    bias = node.args[2] if len(node.args) > 2 else None
    is_private = isinstance(bias, fx.Node) and len(bias.users) == 1
    return is_private and layers.count(model.placement.layers[node.name]) == 1


@torch.no_grad()
def reparameterize_norm(
    model: QuantizedModel, site: NormSite, channels: TensorQuantizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold the per-channel quantizer `channels` of `site` into its LayerNorm and linears, in place.

    The quantizer of `site` gets the step s~ and zero point z~; weights must not be quantized yet.

    Args:
        model: float weights change, the float network does not.
        site: of `model`.
        channels: calibrated on the site's tensor, axis -1, on an unsigned grid.

    Returns:
        Factor and summand [channels]: the tensor that the site's quantizer reads from now on is
        x * factor + summand.
    """
    scale, zero_point = channels.scale.double(), channels.zero_point.double()
    is_live = scale > 2 * MIN_CHANNEL_RATIO * scale.max()
    target_scale = scale[is_live].mean()
    target_zero_point = _target_zero_point(channels.grid, zero_point[is_live])
    divisor = torch.where(is_live, scale / target_scale, 1.0)
    still = 0.0 if site.is_padded else zero_point
    summand = scale * torch.where(is_live, zero_point - target_zero_point, still)
    move_channels(model, site, divisor, summand)
    quantizer = model.quantizer_at(site.call)
    quantizer.grid = channels.grid
    quantizer.scale.copy_(target_scale)
    quantizer.zero_point.fill_(target_zero_point)
    return (1 / divisor).to(channels.scale), (summand / divisor).to(channels.scale)


@torch.no_grad()
def move_channels(
    model: QuantizedModel, site: NormSite, divisor: torch.Tensor, summand: torch.Tensor
) -> None:
    """Turn the tensor x of `site` into (x + summand) / divisor, and its readers back, in place.

    Args:
        model: float weights change, the float network does not.
        site: of `model`.
        divisor: [channels], > 0, float64.
        summand: [channels], float64; zeros where the site is padded.
    """
    gain, shift = (_parameter(model, site.norm.args[i]) for i in (2, 3))
    shift.copy_((shift.double() + summand) / divisor)
    gain.copy_(gain.double() / divisor)
    for reader in site.readers:
        weight = model.weight_of(model.placement.layers[reader.name])
        _parameter(model, reader.args[2]).sub_(weight.double() @ summand)
        weight.copy_(weight.double() * divisor)


def _target_zero_point(grid: IntegerGrid, zero_points: torch.Tensor) -> float:
    if grid.num_bits == 8:
        return grid.offset
    return min(max(round(float(zero_points.mean())), grid.quant_min), grid.quant_max)


@dataclass(frozen=True)
class CentredOperand:
    """A key or a value of an attention, whose range a bias can move.

    Attributes:
        bias: of the linear that makes it.
        channels: which outputs of that linear it is, sorted.
        projection: the linear behind the attention, for a value; None for a key.
    """

    bias: fx.Node
    channels: torch.Tensor
    projection: fx.Node | None

    @torch.no_grad()
    def centre(self, model: QuantizedModel, call: fx.Node) -> float:
        """Shift the operand by its bias, so that the 8-bit codes of the quantizer `call` are symmetric; in place.

        The quantizer is calibrated on the unsigned grid. Returns what was added to every element.
        """
        quantizer = model.quantizer_at(call)
        summand = -float(quantizer.scale) * quantizer.offset
        _parameter(model, self.bias)[self.channels] += summand
        if self.projection is not None:
            weight = model.weight_of(model.placement.layers[self.projection.name])
            bias = _parameter(model, self.projection.args[2])
            bias.sub_(summand * weight.double().sum(1))
        quantizer.zero_point.fill_(quantizer.grid.offset)
        return summand


def find_centred(model: QuantizedModel) -> dict[fx.Node, CentredOperand]:
    """Quantizer call -> operand, for every key and value that a bias of its own can centre."""
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    found: dict[fx.Node, CentredOperand] = {}
    for site in model.placement.attention:
        key, value = nodes[site.scores].args[1], nodes[site.product].args[1]
        assert isinstance(key, fx.Node)
        assert isinstance(value, fx.Node)
        projection = _projection(model, nodes[site.product])
        for call, behind in ((key, None), (value, projection)):
            owner = _bias_of_part(model, call)
            if owner is not None and (call is key or behind is not None):
                found[call] = CentredOperand(*owner, behind)
    return found


def _projection(model: QuantizedModel, product: fx.Node) -> fx.Node | None:
    """The quantized linear that alone reads `product`, and reads all of it."""
    node = product
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.target not in LAYOUT and not is_activation_call(node):
            return node if _is_private_linear(model, node) else None
    return None


def _bias_of_part(model: QuantizedModel, call: fx.Node) -> tuple[fx.Node, torch.Tensor] | None:
    """Bias of the linear of which `call` reads a part, and which outputs that part is.

    None where something else than layout lies between, or the bias is shared.
    """
    chain: list[fx.Node] = []
    node = call.args[0]
    while isinstance(node, fx.Node) and node.target in LAYOUT:
        chain.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node) or not _is_private_linear(model, node):
        return None
    # Where an output ends up: let its number take the way that its values take.
    shape = [concrete_size(side, 1) for side in node.meta["val"].shape]
    numbers = torch.arange(shape[-1], dtype=torch.float32).expand(shape)
    values: dict[fx.Node, torch.Tensor] = {node: numbers}
    run_nodes(model.graph_module, list(reversed(chain)), values, {}, 1)
    part = values[chain[0]] if chain else numbers
    assert isinstance(node.args[2], fx.Node)
    return node.args[2], torch.unique(part).long()


def _parameter(model: QuantizedModel, node: object) -> torch.Tensor:
    assert isinstance(node, fx.Node)
    return get_tensor(model.graph_module, node)


def unsigned_per_channel(num_bits: int, site: NormSite) -> TensorQuantizer:
    """An uncalibrated per-channel quantizer for the tensor of `site`."""
    num_channels = int(site.norm.meta["val"].shape[-1])
    return TensorQuantizer(IntegerGrid.unsigned(num_bits), num_channels, axis=-1)
