"""What residual adds read: one side quantized, the other straight from its convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.placement import Placement
from tests.placing import Forward, conv, edges, place


def test_a_residual_add_reads_the_quantized_skip_and_a_float_branch() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return F.relu(y + m.c(F.relu(m.b(y))))

    placement = place(forward, a=conv(), b=conv(), c=conv())
    assert edges(placement) == [{("x", "a")}, {("relu", "b"), ("relu", "add")}, {("relu_1", "c")}]


def test_the_convolution_of_a_shortcut_is_the_skip_where_the_sum_is_quantized() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return m.d(F.relu(m.c(F.relu(m.b(y))) + m.down(y)))

    layers = {"a": conv(), "b": conv(stride=2), "c": conv(), "down": conv(stride=2), "d": conv()}
    placement = place(forward, **layers)
    added = [edge for group in edges(placement) for edge in group if edge[1] == "add"]
    assert added == [("conv2d_3", "add")]
    assert placement.layers["conv2d_3"] == "down"


def test_two_convolutions_whose_sum_stays_float_are_added_in_float() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return F.relu(m.down(y) + F.relu(m.b(y)))

    placement = place(forward, a=conv(), down=conv(stride=2), b=conv(stride=2))
    assert edges(placement) == [{("x", "a")}, {("relu", "down"), ("relu", "b")}]


def test_an_inverted_residual_without_activation_reads_the_quantized_skip_too() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.project(x)  # MobileNetV2: a linear bottleneck is the skip connection
        return y + m.b(F.relu(m.a(y)))

    placement = place(forward, project=conv(), a=conv(), b=conv())
    assert edges(placement)[1] == {("conv2d", "a"), ("conv2d", "add")}


def test_an_add_never_quantizes_both_of_its_convolutions() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        z = m.b(y)
        return m.c(z) + F.relu(y + z)

    placement = place(forward, a=conv(), b=conv(), c=conv())
    added = [edge for group in edges(placement) for edge in group if edge[1].startswith("add")]
    assert added == [("relu", "add")]


class Scale(nn.Module):
    """A learned factor of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor.view(1, -1, 1, 1)


def place_skip(skip: Forward) -> Placement:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return m.c(F.relu(m.b(y)) + skip(m, y))

    return place(forward, a=conv(), b=conv(), c=conv(), scale=Scale())


@pytest.mark.parametrize(
    "skip", [lambda m, y: m.scale(y), lambda m, y: 0.5 * y, lambda m, y: m.scale.factor[0] * y]
)
def test_a_skip_times_a_constant_reads_the_quantized_value_too(skip: Forward) -> None:
    assert edges(place_skip(skip))[1] == {("relu", "b"), ("relu", "mul")}


@pytest.mark.parametrize(
    "skip",
    [
        lambda m, y: y * y.mean((2, 3), keepdim=True),
        lambda m, y: y * y,
        lambda m, y: m.scale(y).sigmoid(),
        lambda m, y: (z := m.scale(y)) + z.sigmoid(),  # others read the product
    ],
)
def test_other_products_stay_float_in_front_of_an_add(skip: Forward) -> None:
    assert edges(place_skip(skip))[1] == {("relu", "b")}
