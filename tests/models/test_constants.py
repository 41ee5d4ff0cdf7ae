from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from reptrt.models.graph import aten, layer_name, trace
from tests.tiny_networks import smooth_images

SIZE = (8, 8)


class Standardized(nn.Conv2d):
    """Weight standardization (https://arxiv.org/abs/1903.10520)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (deviation + 1e-5), self.bias, self.stride, self.padding)


class Gained(nn.Conv2d):
    """A weight times a learned gain, and a bias that is computed too."""

    def __init__(self, *sides: int) -> None:
        super().__init__(*sides)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.weight * self.gain, self.bias + 1)


class Updated(nn.Module):
    """A 1x1 convolution whose weight has a low-rank update."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(3, 8, 1)
        self.down, self.up = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = (self.up @ self.down)[:, :, None, None]
        return F.conv2d(x, self.base.weight + update, self.base.bias)


COMPUTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight standardization": (lambda: Standardized(3, 8, 3), "layer"),
    "weight normalization": (lambda: weight_norm(nn.Conv2d(3, 8, 3)), "layer"),
    "spectral normalization": (lambda: spectral_norm(nn.Conv2d(3, 8, 3)), "layer"),
    "gain": (lambda: Gained(3, 8, 3), "layer"),
    "low-rank update": (Updated, "layer.base"),
}


class Named(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x)).relu()


@pytest.mark.parametrize("name", COMPUTED)
@torch.no_grad()
def test_a_weight_computed_from_parameters_becomes_the_parameter_of_its_layer(name: str) -> None:
    torch.manual_seed(0)
    make, path = COMPUTED[name]
    module = Named(make()).eval()
    graph_module, images = trace(module, SIZE), smooth_images(2, seed=1, size=8)
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [aten.conv2d.default, aten.relu.default]
    assert layer_name(calls[0]) == path
    torch.testing.assert_close(graph_module(images), module(images))


class Levels(nn.Module):
    """Equal layers, as a file stores a head that several levels share, and one of another weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.second.load_state_dict(self.first.state_dict())
        self.zeros = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
        for layer in self.zeros:
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        layers = [self.first, self.second, self.other, *self.zeros]
        return tuple(layer(F.max_pool2d(x, 1 + i)) for i, layer in enumerate(layers))


@torch.no_grad()
def test_equal_weights_are_stored_once_and_those_that_are_equal_by_chance_twice() -> None:
    module, images = Levels().eval(), smooth_images(2, seed=1, size=8)
    graph_module = trace(module, SIZE)
    layers = [n for n in graph_module.graph.nodes if n.target is aten.conv2d.default]
    names = ["first", "first", "other", "zeros.0", "zeros.1"]
    assert [layer_name(layer) for layer in layers] == names
    assert "second.weight" not in graph_module.state_dict()
    torch.testing.assert_close(graph_module(images), module(images))
