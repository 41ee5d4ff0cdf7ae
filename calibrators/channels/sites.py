"""Which activation quantizers may read each channel of their tensor times a factor of its own.

What is divided in front of the quantizer has to be multiplied behind it. A convolution or linear does
so for nothing, with the columns of its weight (its rows, where it is depthwise); a concat or a max-pool
hands the factors on to its readers; every other reader, such as an addition, gets a multiplication.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from reptrt.calibrators.quantized.moving import LAYOUT, UPSAMPLING
from reptrt.calibrators.quantized.placement import WEIGHTED
from reptrt.calibrators.quantized.quantized_model import QuantizedModel

aten = torch.ops.aten

_CHANNELS = 1
_COMMUTING = (
    aten.relu.default,
    aten.leaky_relu.default,
    aten.max_pool2d.default,
    *UPSAMPLING,
)
"""Operators behind which positive factors of the channels are what they were in front."""


@dataclass(frozen=True)
class ChannelSite:
    """One activation quantizer whose channels may have factors.

    Attributes:
        name: of the quantizer.
        calls: its calls; they share one step, and each has factors of its own.
        carriers: the calls, and the concats and max-pools behind them, in graph order.
        layers: what reads a carrier and takes the factors into its weight.
        restored: (carrier, reader): all other reads, which need a multiplication.
    """

    name: str
    calls: tuple[fx.Node, ...]
    carriers: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]
    restored: tuple[tuple[fx.Node, fx.Node], ...]

    def carried(self, factors: Mapping[fx.Node, torch.Tensor]) -> dict[fx.Node, torch.Tensor]:
        """Factors [channels] of every carrier, from those of the calls; 1 where a call has none."""
        device = next(iter(factors.values())).device
        found: dict[fx.Node, torch.Tensor] = dict(factors)

        def of(node: object) -> torch.Tensor:
            assert isinstance(node, fx.Node)
            if node not in found:
                found[node] = torch.ones(int(node.meta["val"].shape[_CHANNELS]), device=device)
            return found[node]

        for node in self.carriers:
            source = node.args[0]
            if node in self.calls:
                of(node)
            elif isinstance(source, (list, tuple)):
                found[node] = torch.cat([of(one) for one in source])
            else:
                found[node] = of(source)
        return found


def find_site(model: QuantizedModel, name: str) -> ChannelSite | None:
    """The site of the quantizer `name` in the graph of `model` as it is now; None where it has none."""
    order = {node: index for index, node in enumerate(model.graph_module.graph.nodes)}
    quantizer = model.activation_quantizers[name]
    calls = [
        node
        for node in order
        if node.op == "call_module"
        and model.graph_module.get_submodule(str(node.target)) is quantizer
    ]
    if not calls or not all(map(_has_channels, calls)):
        return None
    carriers, layers, restored = list(calls), list[fx.Node](), list[tuple[fx.Node, fx.Node]]()
    for carrier in carriers:
        for user in carrier.users:
            if _hands_on(user):
                carriers.extend([] if user in carriers else [user])
            elif user.target not in WEIGHTED:
                restored.append((carrier, user))
            elif _takes_factors(user, carrier):
                layers.append(user)
            else:
                return None
    carriers.sort(key=order.__getitem__)
    layers.sort(key=order.__getitem__)
    return ChannelSite(name, tuple(calls), tuple(carriers), tuple(layers), tuple(restored))


def find_producer(call: fx.Node) -> fx.Node | None:
    """The convolution or linear whose rows can take the factors of `call`; None where there is none.

    Between both lie at most operators that positive factors pass through, and nothing else reads any of it.
    """
    node = source_of(call)
    while len(node.users) == 1 and node.target in _COMMUTING:
        node = source_of(node)
    if len(node.users) > 1 or node.target not in WEIGHTED:
        return None
    parameters = [argument for argument in node.args[1:3] if argument is not None]
    return node if all(map(_is_private, parameters)) else None


def source_of(node: fx.Node) -> fx.Node:
    """What `node` reads first."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def parameter_of(argument: object) -> fx.Node:
    """The `get_attr` node of a weight, also behind its quantizer."""
    assert isinstance(argument, fx.Node)
    return parameter_of(argument.args[0]) if argument.op == "call_module" else argument


def weight_columns(weight: torch.Tensor, factors: torch.Tensor, groups: int) -> torch.Tensor:
    """Factors of the input channels, so that they multiply `weight`.

    Args:
        weight: [out, in / groups, ...].
        factors: [in].
        groups: of the convolution; 1 for a linear.
    """
    out, per_group = weight.shape[:2]
    columns = factors.view(groups, 1, per_group).expand(groups, out // groups, per_group)
    return columns.reshape(out, per_group, *[1] * (weight.ndim - 2))


def column_sizes(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """How large the weights of an input channel are beside the largest of their rows: [in] in 0..1.

    Args:
        weight: [out, in / groups, ...]; a depthwise layer's have one column, of size 1.
        groups: of the convolution; 1 for a linear.
    """
    rows = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).abs().amax(3)
    largest = rows.amax(2, keepdim=True)
    return torch.where(largest > 0, rows / largest, 0.0).amax(1).flatten()


def groups_of(layer: fx.Node) -> int:
    """Groups of a convolution; 1 for a linear."""
    is_linear = layer.target is aten.linear.default
    return 1 if is_linear or len(layer.args) <= 6 else int(layer.args[6])  # type: ignore[arg-type]


def _has_channels(call: fx.Node) -> bool:
    """Whether axis 1 holds channels, as far as can be told: a map [N, C, ...], or [N, C] itself."""
    value = source_of(call)
    shape = value.meta["val"].shape
    is_flattened = value.target in LAYOUT and len(shape) > 2
    return len(shape) >= 2 and not is_flattened and isinstance(shape[_CHANNELS], int)


def _hands_on(node: fx.Node) -> bool:
    if node.target is aten.cat.default:
        axis = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
        return axis % len(node.meta["val"].shape) == _CHANNELS
    return node.target is aten.max_pool2d.default


def _takes_factors(layer: fx.Node, source: fx.Node) -> bool:
    is_channel_axis = layer.target is not aten.linear.default or source.meta["val"].ndim == 2
    return is_channel_axis and layer.args[0] is source and _is_private(layer.args[1])


def _is_private(argument: object) -> bool:
    """Whether it is a parameter, perhaps behind its quantizer, that one node of the graph reads."""
    if not isinstance(argument, fx.Node) or len(argument.users) > 1:
        return False
    if argument.op == "call_module":
        return _is_private(argument.args[0])
    same = [n for n in argument.graph.nodes if n.op == "get_attr" and n.target == argument.target]
    return argument.op == "get_attr" and len(same) == 1
