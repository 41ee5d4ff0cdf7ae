"""Channels of an attention's values, and the middle of its keys, moved into the linear that makes them.

What the projection behind an attention reads is a weighted mean of values: dividing a channel of the
values, and multiplying the column of the projection that reads it, leaves the float function as it
is, and so does adding a constant to a channel, since probabilities sum to 1. So the projection's input can
be calibrated per channel, as behind a LayerNorm, at no operator (our own; RepQ-ViT calibrates it per
tensor). Where values are quantized themselves, their quantizer is the one that is calibrated per channel;
quantized probabilities do not quite sum to 1, so that nothing is added there. Values in FP8, whose steps grow with
them, stay as they are.

A constant on all keys moves every score of a query alike, which softmax does not see: keys move to the
middle of their range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from reptrt.calibrators.quantized.find_attention import find_attention
from reptrt.calibrators.quantized.moving import LAYOUT
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import concrete_size, run_nodes
from reptrt.calibrators.transformers.scale_reparam import is_private_linear, parameter
from reptrt.models.expand_attention import FUSED

aten = torch.ops.aten

PARTS = (aten.select.int, aten.slice.Tensor)


@dataclass(frozen=True)
class ValueSite:
    """Values of an attention whose channels one linear makes and one linear reads.

    Attributes:
        call: the quantizer that is calibrated per channel: of the values, or of the projection's input.
        readers: the projection's node, alone.
        keeps_zero: values are quantized: nothing may be added to them.
        owner: node of the linear that makes the values.
        rows: its outputs, in the order of the projection's columns, [channels].
        heads: of quantized values [..., heads, tokens, width]; 0 where channels are last.
    """

    call: fx.Node
    readers: tuple[fx.Node, ...]
    keeps_zero: bool
    owner: fx.Node
    rows: torch.Tensor
    heads: int

    @property
    def num_channels(self) -> int:
        """Of the projection's input."""
        return len(self.rows)

    def channels_last(self, x: torch.Tensor) -> torch.Tensor:
        """Heads side by side."""
        return x.transpose(-3, -2).flatten(-2) if self.heads else x

    def spread(self, per_channel: torch.Tensor) -> torch.Tensor:
        """Each head its own."""
        return per_channel.view(self.heads, 1, -1) if self.heads else per_channel

    @torch.no_grad()
    def move(self, model: QuantizedModel, divisor: torch.Tensor, summand: torch.Tensor) -> None:
        """See `ChannelSite.move`; codes that the weight has already stay as they are."""
        layer = model.placement.layers[self.owner.name]
        weight, bias = model.weight_of(layer), parameter(model, self.owner.args[2])
        scale = model.weight_quantizers[layer].scale
        weight[self.rows] = (weight[self.rows].double() / divisor[:, None]).to(weight)
        scale[self.rows] = (scale[self.rows].double() / divisor).to(scale)
        bias[self.rows] = ((bias[self.rows].double() + summand) / divisor).to(bias)


@dataclass(frozen=True)
class CentredKey:
    """Keys of an attention, whose range a bias can move.

    Attributes:
        owner: node of the linear that makes them.
        rows: which of its outputs they are, sorted.
    """

    owner: fx.Node
    rows: torch.Tensor

    @torch.no_grad()
    def add(self, model: QuantizedModel, summand: float) -> None:
        """Add `summand` to every element of the keys of `model`, by their bias, in place."""
        parameter(model, self.owner.args[2])[self.rows] += summand


def find_value_sites(model: QuantizedModel) -> dict[fx.Node, ValueSite]:
    """Quantizer call -> site, for every attention whose values can be moved per channel."""
    found: dict[fx.Node, ValueSite] = {}
    for product, value in _products(model):
        way = _way_to_projection(model, product)
        is_quantized = is_activation_call(value)
        if is_quantized and not model.quantizer_at(value).is_uniform:
            continue
        source = value.args[0] if is_quantized else value
        made = _made_by(model, source)
        if not way or made is None or len(value.users) > 1:
            continue
        owner, numbers = made
        rows = _channels(model, product, way[:-2], numbers)
        if rows is not None and (not is_quantized or _are_side_by_side(rows, numbers)):
            call, heads = (value, numbers.shape[1]) if is_quantized else (way[-2], 0)
            found[call] = ValueSite(call, way[-1:], is_quantized, owner, rows, heads)
    return found


def find_keys(model: QuantizedModel) -> dict[fx.Node, CentredKey]:
    """Quantizer call -> keys, for every quantized attention whose keys a bias of their own can move."""
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    found: dict[fx.Node, CentredKey] = {}
    for site in model.placement.attention:
        call = nodes[site.scores].args[1]
        assert isinstance(call, fx.Node)
        made = _made_by(model, call.args[0])
        if made is not None:
            found[call] = CentredKey(made[0], torch.unique(made[1]).long())
    return found


def _products(model: QuantizedModel) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(product of probabilities and values, values) of every attention."""
    graph = model.graph_module.graph
    quantized = {site.product for site in model.placement.attention}
    written = {product for _, product in find_attention(graph)}
    for node in graph.nodes:
        place = 2 if node.target is FUSED else 1
        if node.target is FUSED or node in written or node.name in quantized:
            value = node.args[place]
            assert isinstance(value, fx.Node)
            yield node, value


def _way_to_projection(model: QuantizedModel, product: fx.Node) -> tuple[fx.Node, ...]:
    """Nodes behind `product` up to the quantized linear that alone reads it; else none."""
    way: list[fx.Node] = []
    node = product
    while len(node.users) == 1:
        node = next(iter(node.users))
        way.append(node)
        if node.target not in LAYOUT and not is_activation_call(node):
            is_site = len(way) > 1 and is_activation_call(way[-2])
            return tuple(way) if is_site and is_private_linear(model, node) else ()
    return ()


def _made_by(model: QuantizedModel, value: object) -> tuple[fx.Node, torch.Tensor] | None:
    """The linear whose outputs `value` consists of, and the number of the output of each element.

    None where something else than layout lies between, or something else reads the same outputs.
    """
    chain: list[fx.Node] = []
    node = value
    while isinstance(node, fx.Node) and node.target in LAYOUT:
        chain.append(node)
        node = node.args[0]
    if not isinstance(node, fx.Node) or not is_private_linear(model, node):
        return None
    for source in (node, *reversed(chain[1:])):
        if len(source.users) > 1 and not _reads_parts(source):
            return None
    # Where an output ends up: let its number take the way that its values take.
    shape = [concrete_size(side, 1) for side in node.meta["val"].shape]
    numbers = torch.arange(shape[-1], dtype=torch.float32).expand(shape)
    values: dict[fx.Node, torch.Tensor] = {node: numbers}
    run_nodes(model.graph_module, list(reversed(chain)), values, {}, 1)
    return node, values[chain[0]] if chain else numbers


def _reads_parts(source: fx.Node) -> bool:
    """Whether all that reads `source` takes another part of it."""
    if isinstance(source.meta.get("val"), (tuple, list)):
        return True  # each item is read by a `getitem` of its own
    kinds = {(user.target, user.args[1:]) for user in source.users}
    return len(kinds) == len(source.users) and {target for target, _ in kinds} <= set(PARTS)


def _are_side_by_side(rows: torch.Tensor, numbers: torch.Tensor) -> bool:
    """Whether `rows` are those of values [images, heads, tokens, width], head behind head."""
    return numbers.ndim == 4 and torch.equal(rows, numbers[0, :, 0].flatten().long())


def _channels(
    model: QuantizedModel, product: fx.Node, way: Sequence[fx.Node], numbers: torch.Tensor
) -> torch.Tensor | None:
    """Number of the output behind each channel of what the projection reads; None if it is not one."""
    shape = [concrete_size(side, 1) for side in product.meta["val"].shape]
    one_token = numbers[..., :1, :]
    if list(numbers.shape[:-2]) != shape[:-2] or not bool((numbers == one_token).all()):
        return None
    values = {product: one_token.expand(shape)}
    run_nodes(model.graph_module, way, values, {}, 1)
    found = values[way[-1] if way else product]
    rows = found.reshape(-1, found.shape[-1])
    is_even = bool((rows == rows[:1]).all()) and len(set(rows[0].tolist())) == rows.shape[1]
    return rows[0].long() if is_even else None
