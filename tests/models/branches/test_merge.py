from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from reptrt.models.branches.merge import MergedLayer, describe_merged, merge_branches
from reptrt.models.graph import drop_layout_copies, merged_layers, trace
from tests.models.branches.blocks import CHANNELS, KEPT, MERGED, Branches, conv_norm
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


class CalledTwice(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Branches(conv_norm(CHANNELS, 3), conv_norm(CHANNELS, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(x).relu())


def test_a_block_that_is_called_twice_is_stored_once_under_its_largest_branchs_name() -> None:
    graph_module, merged = merge(network(CalledTwice()))
    assert [layer.layer for layer in merged] == ["block.block.branches.0.0"] * 2
    weights = {n.target for n in graph_module.graph.nodes if str(n.target).startswith("block.")}
    assert weights == {"block.block.branches.0.0.weight", "block.block.branches.0.0.bias"}


def test_gain_and_shift_are_those_of_the_largest_branchs_norm() -> None:
    module = network(Branches(conv_norm(8, 1), conv_norm(8, 3), conv_norm(8, 1)))
    norm = module.block.branches[1][1]
    ((layer),) = merge(module)[1]
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    assert layer.branches == 3
    torch.testing.assert_close(layer.gain, gain.detach())
    torch.testing.assert_close(layer.shift, (norm.bias - norm.running_mean * gain).detach())


def test_what_was_merged_is_said_on_one_line() -> None:
    module = network(Branches(conv_norm(8, 3), conv_norm(8, 1))).float()
    merged = merged_layers(trace(module, SIZE))
    assert describe_merged(merged) == "merged 2 parallel branches into 1 layer: block.branches.0.0"
    assert describe_merged(()) == "no parallel branches were found to merge"
