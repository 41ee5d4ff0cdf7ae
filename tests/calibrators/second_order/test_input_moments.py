from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.second_order import input_moments as module
from reptrt.calibrators.second_order.input_moments import InputMoments, input_moments
from reptrt.models.graph import trace

LAYERS = {
    "3x3": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=(0, 1)),
    "dilated": nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), padding=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "pointwise": nn.Conv2d(4, 6, 1, bias=False),
    "linear": nn.Linear(9, 5),
}


def weighted(layer: nn.Module) -> tuple[fx.Node, torch.Tensor]:
    """The layer's node on a graph that reads maps [N, 4, 8, 9], and its weight."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    graph = trace(Net().eval(), (8, 9), num_channels=4).graph
    nodes = [n for n in graph.nodes if n.target in (*module_targets(),)]
    return nodes[0], layer.weight.detach()  # type: ignore[return-value]


def module_targets() -> tuple[object, ...]:
    aten = torch.ops.aten
    return aten.conv2d.default, aten.linear.default


def maps(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 9, generator=torch.Generator().manual_seed(0))


def measure(
    layer: nn.Module,
    x: torch.Tensor,
    before: torch.Tensor,
    importance: torch.Tensor | None = None,
) -> InputMoments:
    node, weight = weighted(layer)
    halves = (x[:1], x[1:]), (before[:1], before[1:])
    generator = torch.Generator().manual_seed(0)
    return input_moments(node, weight, *halves, generator, importance)


def all_rows(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[groups, rows, in] by PyTorch's own im2col."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, nn.Conv2d)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    count, width, positions = patches.shape
    return patches.reshape(count, layer.groups, width // layer.groups, positions).permute(
        1, 0, 3, 2
    ).reshape(layer.groups, count * positions, -1)  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_pytorchs_patches(name: str) -> None:
    layer, x = LAYERS[name], maps(3)
    found, rows = measure(layer, x, 2 * x), all_rows(layer, x).double()
    torch.testing.assert_close(found.mean, rows.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.float_mean, 2 * rows.mean(1), rtol=1e-5, atol=1e-6)
    centred = rows - rows.mean(1, keepdim=True)
    expected = centred.transpose(1, 2) @ centred / rows.shape[1]
    torch.testing.assert_close(found.covariance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["3x3", "linear"])
def test_a_sample_of_positions_is_read_and_says_nearly_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = LAYERS[name], maps(60)
    whole = measure(layer, x, x)
    monkeypatch.setattr(module, "MOST_ROWS", 1200)
    some, again = measure(layer, x, x), measure(layer, x, x)
    assert torch.equal(some.covariance, again.covariance)
    assert not torch.equal(some.covariance, whole.covariance)
    torch.testing.assert_close(some.covariance, whole.covariance, rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["pointwise", "linear"])
def test_moments_are_those_of_the_positions_that_matter(name: str) -> None:
    layer, x = LAYERS[name], maps(60)
    with torch.no_grad():
        importance = torch.zeros_like(layer(x[0]))
    importance[..., 2, :] = 1.0  # of the rows of the map, the third alone
    found, rows = measure(layer, x, x, importance), all_rows(layer, x[:, :, 2:3]).double()
    centred = rows - rows.mean(1, keepdim=True)
    expected = centred.transpose(1, 2) @ centred / rows.shape[1]
    torch.testing.assert_close(found.mean, rows.mean(1), rtol=0, atol=0.1)
    torch.testing.assert_close(found.covariance, expected, rtol=0, atol=0.25)
    everywhere = measure(layer, x, x)
    assert not torch.allclose(everywhere.mean, found.mean, rtol=0, atol=0.01)
