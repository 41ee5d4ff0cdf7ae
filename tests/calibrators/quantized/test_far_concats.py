"""Which concats keep the scales of their sources apart, and what placement makes of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.far_concats import find_far_concats
from reptrt.calibrators.quantized.placement import Placement, place_quantizers
from reptrt.models.graph import trace


class Joined(nn.Module):
    """Two branches, the second `gain` times as wide, joined for a layer; another reads the first."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.both, self.alone = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
        self.wide.weight.data = self.narrow.weight.data * gain
        self.wide.bias.data = self.narrow.bias.data * gain  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow, wide = F.relu(self.narrow(x)), F.relu(self.wide(x))
        return self.both(torch.cat([narrow, wide], 1)) + self.alone(narrow)


def _far(gain: float) -> list[str]:
    return find_far_concats(trace(Joined(gain).eval(), (8, 8)), torch.rand(2, 3, 8, 8))


def _place(*apart: str) -> Placement:
    return place_quantizers(trace(Joined(1.0).eval(), (8, 8)).graph, apart=apart)


def test_ranges_up_to_a_factor_of_four_share_a_scale() -> None:
    assert _far(3.9) == []
    assert _far(4.1) == ["cat"]
    assert _far(0.2) == ["cat"]


def test_a_source_of_zeros_asks_for_nothing() -> None:
    assert _far(0.0) == []


def test_sources_of_a_concat_share_a_quantizer_by_default() -> None:
    tied = {point.tensors for point in _place().points}
    assert ("relu", "relu_1") in tied


def test_sources_that_are_apart_have_their_own_quantizers_and_the_concat_has_one_behind() -> None:
    edges = {point.edges for point in _place("cat").points}
    assert (("relu", "cat"), ("relu", "conv2d_3")) in edges
    assert (("relu_1", "cat"),) in edges
    assert (("cat", "conv2d_2"),) in edges
