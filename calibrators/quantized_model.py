"""A traced float model with quantizers on the edges that placement chose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from calibrators.placement import Placement
from calibrators.quantizers import IntegerGrid, TensorQuantizer
from models.graph import get_tensor

ACTIVATIONS = "activation_quantizers"
WEIGHTS = "weight_quantizers"


@dataclass(frozen=True)
class QuantizedModel:
    """The reference for everything downstream: export writes this model, engines must agree with it.

    Attributes:
        graph_module: ATen graph with `TensorQuantizer` calls; runs as an ordinary module.
        placement: what is quantized and why the rest is not.
        activation_quantizers: point name -> quantizer.
        weight_quantizers: layer name -> quantizer.
        weight_paths: layer name -> path of its float weight in the state dict.
    """

    graph_module: fx.GraphModule
    placement: Placement
    activation_quantizers: dict[str, TensorQuantizer]
    weight_quantizers: dict[str, TensorQuantizer]
    weight_paths: dict[str, str]

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run on images [N, 3, H, W]; always a tuple of outputs."""
        outputs = self.graph_module(images)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    @contextmanager
    def float_mode(self) -> Iterator[None]:
        """Inside this context every quantizer is the identity."""
        quantizers = [*self.activation_quantizers.values(), *self.weight_quantizers.values()]
        before = [quantizer.enabled for quantizer in quantizers]
        for quantizer in quantizers:
            quantizer.enabled = False
        try:
            yield
        finally:
            for quantizer, enabled in zip(quantizers, before, strict=True):
                quantizer.enabled = enabled

    def weight_of(self, layer: str) -> torch.Tensor:
        """Float weight [out, in, ...] of a quantized layer."""
        return self.graph_module.get_parameter(self.weight_paths[layer])


def insert_quantizers(
    graph_module: fx.GraphModule,
    placement: Placement,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
) -> QuantizedModel:
    """Put a quantizer call on every edge of `placement`; changes `graph_module` in place."""
    nodes = {node.name: node for node in graph_module.graph.nodes}
    paths = {layer: str(nodes[name].args[1].target) for name, layer in placement.layers.items()}
    weights = _quantize_weights(graph_module, placement, nodes, weight_bits)
    activations = _quantize_activations(graph_module, placement, nodes, activation_bits)
    graph_module.recompile()
    return QuantizedModel(graph_module, placement, activations, weights, paths)


def _quantize_weights(
    graph_module: fx.GraphModule, placement: Placement, nodes: Mapping[str, fx.Node], num_bits: int
) -> dict[str, TensorQuantizer]:
    quantizers: dict[str, TensorQuantizer] = {}
    for node_name, layer in placement.layers.items():
        consumer = nodes[node_name]
        weight = consumer.args[1]
        assert isinstance(weight, fx.Node)
        if layer not in quantizers:  # a weight that two layers share is quantized once
            channels = get_tensor(graph_module, weight).shape[0]
            grid = IntegerGrid.for_weights(num_bits)
            quantizers[layer] = TensorQuantizer(grid, num_channels=channels, axis=0)
        target = _add_module(graph_module, WEIGHTS, layer, quantizers[layer])
        with graph_module.graph.inserting_before(consumer):
            call = graph_module.graph.call_module(target, (weight,))
        call.meta = dict(weight.meta)
        consumer.update_arg(1, call)
    return quantizers


def _quantize_activations(
    graph_module: fx.GraphModule, placement: Placement, nodes: Mapping[str, fx.Node], num_bits: int
) -> dict[str, TensorQuantizer]:
    quantizers: dict[str, TensorQuantizer] = {}
    for point in placement.points:
        quantizer = TensorQuantizer(IntegerGrid.for_activations(num_bits, signed=True))
        quantizers[point.name] = quantizer
        target = _add_module(graph_module, ACTIVATIONS, point.name, quantizer)
        calls: dict[str, fx.Node] = {}
        for value_name, consumer_name in point.edges:
            value = nodes[value_name]
            if value_name not in calls:
                with graph_module.graph.inserting_after(value):
                    calls[value_name] = graph_module.graph.call_module(target, (value,))
                calls[value_name].meta = dict(value.meta)
            nodes[consumer_name].replace_input_with(value, calls[value_name])
    return quantizers


def _add_module(graph_module: fx.GraphModule, folder: str, name: str, module: nn.Module) -> str:
    target = f"{folder}.{name.replace('.', '/')}"  # not "_": `a.b` and `a_b` are two layers
    graph_module.add_submodule(target, module)
    return target
