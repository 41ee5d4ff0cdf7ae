"""A traced float model with quantizers on the edges that placement chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from reptrt.calibrators.feed import Batch, tensors_of
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.moving import SELECTING
from reptrt.calibrators.quantized.placement import (
    TRANSPOSED,
    WEIGHTED,
    Placement,
    QuantizationPoint,
    is_depthwise,
    last_layers,
)
from reptrt.calibrators.quantized.quantizers import (
    Fp8Quantizer,
    IntegerGrid,
    LogSqrt2Quantizer,
    TensorQuantizer,
)
from reptrt.models.graph import get_tensor, set_parameter

aten = torch.ops.aten

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
        branch_affines: layer name -> BatchNorm of the dense branch that it was merged from, where
            the network came in train form (`reptrt.calibrators.reconstruction.qprep`).
    """

    graph_module: fx.GraphModule
    placement: Placement
    activation_quantizers: dict[str, TensorQuantizer]
    weight_quantizers: dict[str, TensorQuantizer]
    weight_paths: dict[str, str]
    branch_affines: dict[str, ChannelAffine] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Run on images [N, 3, H, W], or on other inputs; always a tuple of outputs."""
        return tuple(tree_leaves(self.graph_module(*tensors_of(batch))))

    @property
    def is_fixed(self) -> bool:
        """Whether it runs on batches of one size alone."""
        inputs = [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]
        first = [side for node in inputs for side in node.meta["val"].shape[:1]]
        return all(isinstance(side, int) for side in first)

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

    def weight_target(self, layer: str) -> str:
        """Path of the weight quantizer of `layer` in the graph module."""
        return _target(WEIGHTS, layer)

    def quantizer_at(self, node: fx.Node) -> TensorQuantizer:
        """The quantizer that a `call_module` node calls."""
        quantizer = self.graph_module.get_submodule(str(node.target))
        assert isinstance(quantizer, TensorQuantizer)
        return quantizer


def is_activation_call(node: fx.Node) -> bool:
    """Whether `node` calls an activation quantizer."""
    return node.op == "call_module" and str(node.target).startswith(f"{ACTIVATIONS}.")


def insert_quantizers(
    graph_module: fx.GraphModule,
    placement: Placement,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    first_last_bits: int | None = None,
    depthwise_bits: int | None = None,
    branch_affines: Mapping[str, ChannelAffine] | None = None,
) -> QuantizedModel:
    """Put a quantizer call on every edge of `placement`; changes `graph_module` in place.

    A quantized linear without a bias gets one of zeros, where its name is free.

    Args:
        graph_module: traced float network.
        placement: where quantizers go.
        weight_bits: of the weights.
        activation_bits: of the activations.
        first_last_bits: least bits, of weights and inputs, of the layers that read the images and
            of those behind which no other comes, quantized or float; None for no exception.
        depthwise_bits: least bits of the weights of depthwise convolutions; None for no exception.
        branch_affines: see `QuantizedModel`.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    paths = {layer: str(nodes[name].args[1].target) for name, layer in placement.layers.items()}
    _add_biases(graph_module, [nodes[name] for name in placement.layers])
    outer = _first_and_last(graph_module.graph, placement)
    least = first_last_bits or 0

    def is_outer(consumer: fx.Node) -> bool:
        if consumer.target in SELECTING:
            return all(is_outer(user) for user in consumer.users)
        return consumer.name in outer

    def bits_of_layer(node_name: str) -> int:
        is_deep = is_depthwise(nodes[node_name])
        own = depthwise_bits if is_deep and depthwise_bits is not None else 0
        return max(weight_bits, least if node_name in outer else 0, own)

    def bits_of_point(point: QuantizationPoint) -> int:
        all_outer = all(is_outer(nodes[consumer]) for _, consumer in point.edges)
        return max(activation_bits, least if all_outer else 0)

    weights = _quantize_weights(graph_module, placement, nodes, bits_of_layer)
    activations = _quantize_activations(graph_module, placement, nodes, bits_of_point)
    graph_module.recompile()
    return QuantizedModel(
        graph_module, placement, activations, weights, paths, dict(branch_affines or {})
    )


def _first_and_last(graph: fx.Graph, placement: Placement) -> set[str]:
    """Quantized layers that read the images through no other layer, or that no other follows."""
    layers = {node for node in graph.nodes if node.target in (*WEIGHTED, *TRANSPOSED)}
    before: set[fx.Node] = set()  # nodes in front of which no layer lies
    for node in graph.nodes:
        if all(source in before and source not in layers for source in node.all_input_nodes):
            before.add(node)
    outer = before | last_layers(graph)
    return {node.name for node in outer if node.name in placement.layers}


def _add_biases(graph_module: fx.GraphModule, layers: Sequence[fx.Node]) -> None:
    """Give every linear without a bias one of zeros: reparameterized scales need room for theirs."""
    added: dict[str, fx.Node] = {}
    for layer in layers:
        has_bias = len(layer.args) > 2 and layer.args[2] is not None
        if layer.target is not aten.linear.default or has_bias:
            continue
        weight = layer.args[1]
        assert isinstance(weight, fx.Node)
        path = str(weight.target).removesuffix("weight") + "bias"
        if path not in added:
            if path in graph_module.state_dict():
                continue  # of another layer
            tensor = get_tensor(graph_module, weight)
            set_parameter(graph_module, path, tensor.new_zeros(tensor.shape[0]))
            with graph_module.graph.inserting_before(layer):
                added[path] = graph_module.graph.get_attr(path)
            added[path].meta = {"val": weight.meta["val"][:, 0]}
        layer.args = (*layer.args[:2], added[path])


def _quantize_weights(
    graph_module: fx.GraphModule,
    placement: Placement,
    nodes: Mapping[str, fx.Node],
    bits_of: Callable[[str], int],
) -> dict[str, TensorQuantizer]:
    quantizers: dict[str, TensorQuantizer] = {}
    for node_name, layer in placement.layers.items():
        consumer = nodes[node_name]
        weight = consumer.args[1]
        assert isinstance(weight, fx.Node)
        if layer not in quantizers:  # a weight that two layers share is quantized once
            channels = get_tensor(graph_module, weight).shape[0]
            grid = IntegerGrid.for_weights(bits_of(node_name))
            quantizers[layer] = TensorQuantizer(grid, num_channels=channels, axis=0)
        target = _add_module(graph_module, WEIGHTS, layer, quantizers[layer])
        with graph_module.graph.inserting_before(consumer):
            call = graph_module.graph.call_module(target, (weight,))
        call.meta = dict(weight.meta)
        consumer.update_arg(1, call)
    return quantizers


def _quantize_activations(
    graph_module: fx.GraphModule,
    placement: Placement,
    nodes: Mapping[str, fx.Node],
    bits_of: Callable[[QuantizationPoint], int],
) -> dict[str, TensorQuantizer]:
    quantizers: dict[str, TensorQuantizer] = {}
    probabilities = {site.probabilities for site in placement.attention}
    operands = {point for site in placement.attention for point in site.points}
    for point in placement.points:
        if placement.softmax == "fp8" and point.name in operands:
            quantizer: TensorQuantizer = Fp8Quantizer(IntegerGrid.for_activations(8, signed=True))
        elif placement.softmax == "log2" and point.name in probabilities:
            quantizer = LogSqrt2Quantizer(IntegerGrid.unsigned(bits_of(point)))
        else:
            quantizer = TensorQuantizer(IntegerGrid.for_activations(bits_of(point), signed=True))
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
    target = _target(folder, name)
    graph_module.add_submodule(target, module)
    return target


def _target(folder: str, name: str) -> str:
    return f"{folder}.{name.replace('.', '/')}"  # not "_": `a.b` and `a_b` are two layers
