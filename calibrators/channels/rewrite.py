"""Divide channels in front of their quantizers, and multiply them again behind: the same function.

With factors m of a tensor x of C channels, its quantizer reads x / m. Where that costs an operator, the
exact folds come first:

1. the rows and the bias of the layer that makes x, behind a ReLU, a LeakyReLU or nothing, are divided;
   else a multiplication by 1 / m stands in front of the quantizer;
2. layers that read the codes multiply the columns of their weights: W[:, c] m[c]. A depthwise layer's
   are its rows, whose scales take m without any loss;
3. other readers, such as the addition of a skip connection, read a multiplication by m.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from reptrt.calibrators.channels.sites import (
    ChannelSite,
    find_producer,
    find_site,
    groups_of,
    parameter_of,
    source_of,
    weight_columns,
)
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.models.graph import get_tensor
from reptrt.models.parameters import add_parameter, fresh_path

aten = torch.ops.aten

_FACTORS = "channel_factors"


class ChannelFactorError(ValueError):
    """The factors are of another network."""

    exit_code = 2


ChannelFactors = Mapping[str, torch.Tensor]
"""Quantized tensor -> factor [channels] > 0 that its quantizer divides each channel by."""


@torch.no_grad()
def scale_channels(model: QuantizedModel, factors: ChannelFactors) -> None:
    """Let the quantizers of `model` read the tensors of `factors` divided; changes `model` in place.

    The float function stays the same. Scales and learned weights must not be set yet. Tensors that are
    not quantized in `model`, or that cannot be scaled there, are left alone.

    Raises:
        ChannelFactorError: a tensor has another number of channels.
    """
    for name in model.activation_quantizers:
        site = find_site(model, name)
        if site is None:
            continue
        tensors = {call: source_of(call).name for call in site.calls}
        own = {call: factors[name] for call, name in tensors.items() if name in factors}
        if own:
            _require_fit(own)
            _scale(model, site, own)
    model.graph_module.recompile()


def _require_fit(own: Mapping[fx.Node, torch.Tensor]) -> None:
    for call, factor in own.items():
        source = source_of(call)
        if factor.shape != source.meta["val"].shape[1:2]:
            raise ChannelFactorError(
                f"channels.safetensors: has {len(factor)} factors for {source.name}, which has"
                f" {source.meta['val'].shape[1]} channels; remove it, and calibrate again"
            )


def scaled_rows(model: QuantizedModel, factors: ChannelFactors) -> dict[str, torch.Tensor]:
    """Layer -> what the channels of its output were divided by [channels], in a `model` that was scaled by `factors`."""
    found = {}
    for name in model.activation_quantizers:
        site = find_site(model, name)
        for call in site.calls if site is not None else ():
            producer, factor = find_producer(call), factors.get(source_of(call).name)
            if producer is not None and factor is not None:
                weight = str(parameter_of(producer.args[1]).target)
                found[weight.removesuffix(".weight")] = factor
    return found


def describe_factors(model: QuantizedModel, factors: ChannelFactors) -> str:
    """What became of `factors` in `model`, for people."""
    products = sum(
        node.op == "get_attr" and str(node.target).startswith(f"{_FACTORS}.")
        for node in model.graph_module.graph.nodes
    )
    tensors, times = _counted(len(factors), "tensor"), _counted(products, "multiplication")
    return f"{tensors} in front of quantizers; {times} for it"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _scale(model: QuantizedModel, site: ChannelSite, own: Mapping[fx.Node, torch.Tensor]) -> None:
    module = model.graph_module
    carried = site.carried(own)
    for layer in site.layers:
        weight = get_tensor(module, parameter_of(layer.args[1]))
        factor = carried[source_of(layer)].to(weight)
        weight.mul_(weight_columns(weight, factor, groups_of(layer)))
    for carrier, reader in site.restored:
        product = _multiply(module, carrier, carried[carrier], "behind", before=reader)
        reader.replace_input_with(carrier, product)
    for call, factor in own.items():
        _divide(model, call, factor)


def _divide(model: QuantizedModel, call: fx.Node, factor: torch.Tensor) -> None:
    """Let `call` quantize its tensor divided by `factor`."""
    module, value = model.graph_module, source_of(call)
    producer = find_producer(call)
    if producer is None:
        call.update_arg(0, _multiply(module, value, 1 / factor.double(), "before", before=call))
        return
    for argument in producer.args[1:3]:
        if argument is not None:
            tensor = get_tensor(module, parameter_of(argument))
            tensor.div_(factor.to(tensor).view(-1, *[1] * (tensor.ndim - 1)))
    layer = model.placement.layers.get(producer.name, "")
    if (affine := model.branch_affines.get(layer)) is not None:
        own = factor.to(affine.gain)
        model.branch_affines[layer] = ChannelAffine(affine.gain / own, affine.shift / own)


def _multiply(
    module: fx.GraphModule, value: fx.Node, factor: torch.Tensor, place: str, before: fx.Node
) -> fx.Node:
    """`value` times `factor` [channels], computed in front of `before`."""
    like, weight = value.meta["val"], next(module.parameters())
    shaped = factor.to(weight).view(-1, *[1] * (like.ndim - 2))
    path = fresh_path(module, f"{_FACTORS}.{place}_{value.name}")
    constant = add_parameter(module, path, shaped, before, like)
    with module.graph.inserting_before(before):
        product = module.graph.call_function(aten.mul.Tensor, (value, constant))
    product.meta = dict(value.meta)
    return product
