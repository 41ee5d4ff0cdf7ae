"""Sizes in a traced graph, as numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.run_nodes import activation_nodes, concrete_size, run_nodes
from reptrt.models.graph import trace_inputs
from reptrt.models.inputs import NetworkInput


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def test_open_sides_are_as_long_as_usual_and_the_batch_is_what_it_is() -> None:
    one = NetworkInput(
        "images", "float32", (1, 8, 12), smallest=(1, 4, 6), largest=(1, 16, 24), picture="chw"
    )
    graph_module = trace_inputs(Shuffled().eval(), [one])
    nodes = activation_nodes(graph_module.graph)
    shape = nodes[-1].meta["val"].shape
    assert [concrete_size(side, 5) for side in shape] == [5, 1, 16, 24]
    images = torch.rand(5, 1, 8, 12)
    values = {nodes[0]: images}
    with torch.no_grad():
        run_nodes(graph_module, nodes[1:], values, {}, 5)
        torch.testing.assert_close(values[nodes[-1]], graph_module(images))
