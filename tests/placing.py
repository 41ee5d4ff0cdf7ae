"""Place quantizers on networks of named layers and a function that connects them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from reptrt.calibrators.quantized.placement import Placement, place_quantizers
from reptrt.models.graph import trace

Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Network(nn.Module):
    """Named layers and a function that connects them."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def conv(channels: int = 3, out: int = 3, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2)


def place(forward: Forward, *keep_float: str, **layers: nn.Module) -> Placement:
    graph_module = trace(Network(forward, **layers).eval(), (8, 8))
    return place_quantizers(graph_module.graph, keep_float)


def place_detector(forward: Forward, **layers: nn.Module) -> Placement:
    graph_module = trace(Network(forward, **layers).eval(), (8, 8))
    return place_quantizers(graph_module.graph, quantize_head=False)


def edges(placement: Placement) -> list[set[tuple[str, str]]]:
    """Edges of each quantizer, its consumers under their layer names."""
    return [
        {(value, placement.layers.get(consumer, consumer)) for value, consumer in point.edges}
        for point in placement.points
    ]
