from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from reptrt.models.branches.merge import MergedLayer, merge_branches
from reptrt.models.graph import drop_layout_copies
from tests.models.branches.blocks import (
    CHANNELS,
    KEPT,
    MERGED,
)
from tests.tiny_networks import randomize

SIZE = (14, 10)
LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


class OnImages(nn.Module):
    """A stem that gives `block` its channels, and an activation behind it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, CHANNELS, 1), block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.stem(x).relu()).relu()


def network(block: nn.Module) -> nn.Module:
    return randomize(OnImages(block)).double()


def images(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, *SIZE, generator=generator).double()


def operators(graph_module: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


def num_layers(graph_module: torch.fx.GraphModule) -> int:
    return sum(target in LAYERS for target in operators(graph_module))


def record(module: nn.Module) -> torch.fx.GraphModule:
    program = torch.export.export(module, (images(),), dynamic_shapes=({0: Dim.AUTO},))
    graph_module = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(graph_module, torch.fx.GraphModule)
    drop_layout_copies(graph_module)
    return graph_module


def merge(module: nn.Module) -> tuple[torch.fx.GraphModule, tuple[MergedLayer, ...]]:
    """`module` recorded and merged, with every parameter in float64, and what was merged."""
    graph_module = record(module)
    return graph_module, merge_branches(graph_module)


@pytest.mark.parametrize("name", MERGED)
def test_the_branches_of_a_block_become_one_layer_that_computes_the_same(name: str) -> None:
    module = network(MERGED[name]())
    expected = module(images())
    graph_module, merged = merge(module)
    assert len(merged) == 1
    assert num_layers(graph_module) == 2  # the stem, and the block
    assert torch.ops.aten.add.Tensor not in operators(graph_module)
    torch.testing.assert_close(graph_module(images()), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_one_cheaper_convolution_stays(name: str) -> None:
    module = network(KEPT[name]())
    expected, before = module(images()), num_layers(record(module))
    graph_module, merged = merge(module)
    assert merged == ()
    assert num_layers(graph_module) == before
    torch.testing.assert_close(graph_module(images()), expected)
