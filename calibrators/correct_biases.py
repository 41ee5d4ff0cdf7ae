"""Give the mean of every channel back that quantization has moved.

Rounding a weight moves all positions of a channel the same way. Such errors add up through the layers and do not
average out in a pooling, as errors of activations do: in MobileOne-S0 they are most of the noise at the outputs. Nagel
et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (https://arxiv.org/abs/1906.04721),
section 4.2: the bias of a layer takes what its output lacks. Here it is measured on calibration images, layer by layer
in the order of computation, each behind the corrected ones: errors of what a layer reads are corrected too. An image
whose outputs are larger than usual counts less: a few with far wider activations, whose clipped values no bias can
give back, would decide alone. That is ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import fx

from reptrt.calibrators.feed import Batch, first_images, tensors_of
from reptrt.calibrators.progress import Progress, no_progress, share_of
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import (
    Overrides,
    activation_nodes,
    float_overrides,
    run_nodes,
)

NUM_IMAGES, PIXELS = 64, 32 * 320 * 320
"""Whose means are corrected: so many images, and fewer where that is more pixels."""

_TINY = 1e-12

aten = torch.ops.aten

Visit = Callable[[fx.Node, Sequence[torch.Tensor]], torch.Tensor | None]


@torch.no_grad()
def correct_biases(
    model: QuantizedModel, images: Sequence[Batch], progress: Progress = no_progress
) -> None:
    """Correct the bias of every quantized layer that has one of its own, in place.

    Args:
        model: with calibrated scales.
        images: to calibrate with; 64 at most are looked at, 32 of 320x320 pixels.
        progress: called as work advances.
    """
    own = own_biases(model)
    at_once = math.inf if model.is_fixed else PIXELS
    chunks = list(first_images(images, NUM_IMAGES, PIXELS, at_once))
    counts = [len(chunk) for chunk in chunks]
    expected: dict[fx.Node, torch.Tensor] = {}
    weights: dict[fx.Node, torch.Tensor] = {}

    def observe(node: fx.Node, outputs: Sequence[torch.Tensor]) -> None:
        if node in own:
            expected[node] = _channel_means(node, outputs, counts)
            weights[node] = _weights(outputs, counts)

    def correct(node: fx.Node, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        if node not in own:
            return None
        lacks = weights[node] @ (expected[node] - _channel_means(node, outputs, counts))
        model.graph_module.get_parameter(own[node]).add_(lacks)
        return lacks.view(_shape(node, outputs[0]))

    bar = share_of(progress, "correct biases", 0.0, 0.5)
    _walk(model, chunks, float_overrides(model), observe, bar)
    _walk(model, chunks, {}, correct, share_of(progress, "correct biases", 0.5, 1.0))


def own_biases(model: QuantizedModel) -> dict[fx.Node, str]:
    """Every quantized layer that is called once -> its bias, where nothing else reads that."""
    layers, found = model.placement.layers, {}
    calls = Counter(layers.values())
    for node in model.graph_module.graph.nodes:
        bias = node.args[2] if node.name in layers and len(node.args) > 2 else None
        if not isinstance(bias, fx.Node) or bias.op != "get_attr" or len(bias.users) > 1:
            continue
        if calls[layers[node.name]] == 1:
            found[node] = str(bias.target)
    return found


def _walk(
    model: QuantizedModel,
    chunks: Sequence[Batch],
    overrides: Overrides,
    visit: Visit,
    progress: Progress,
) -> None:
    """Run all `chunks` side by side, node by node; what `visit` returns is added to the node's value."""
    graph_module = model.graph_module
    nodes = dict.fromkeys(activation_nodes(graph_module.graph))
    unread = {node: sum(reader in nodes for reader in node.users) for node in nodes}
    read = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    values = [dict(zip(read, tensors_of(chunk), strict=True)) for chunk in chunks]
    for done, node in enumerate(nodes, start=1):
        progress("nodes", done, len(nodes))
        if node.op == "placeholder":
            continue
        for own, chunk in zip(values, chunks, strict=True):
            run_nodes(graph_module, [node], own, overrides, len(chunk))
        added = visit(node, [own[node] for own in values])
        for source in node.all_input_nodes:
            unread[source] = unread.get(source, 1) - 1
        for own in values:
            if added is not None:
                own[node] = own[node] + added
            for known in [known for known in own if not unread.get(known)]:
                del own[known]


def _channel_means(
    layer: fx.Node, outputs: Sequence[torch.Tensor], counts: Sequence[int]
) -> torch.Tensor:
    """Over all positions of each image, [images, channels]."""
    rows = [output.movedim(_axis(layer), -1) for output in outputs]
    channels = rows[0].shape[-1]
    return torch.cat(
        [row.reshape(n, -1, channels).mean(1) for row, n in zip(rows, counts, strict=True)]
    )


def _weights(outputs: Sequence[torch.Tensor], counts: Sequence[int]) -> torch.Tensor:
    """What images count, [images]; 1 in all. One that has less than the mean counts as one that has it."""
    powers = torch.cat(
        [one.reshape(n, -1).square().mean(1) for one, n in zip(outputs, counts, strict=True)]
    )
    inverse = 1 / powers.maximum(powers.mean()).clamp_min(_TINY)
    return inverse / inverse.sum()


def _shape(layer: fx.Node, output: torch.Tensor) -> list[int]:
    """In which one value for each channel is added to `output`."""
    shape = [1] * output.ndim
    shape[_axis(layer)] = -1
    return shape


def _axis(layer: fx.Node) -> int:
    """Of the channels of its output."""
    return -1 if layer.target is aten.linear.default else 1
