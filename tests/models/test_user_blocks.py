"""Blocks that users write: fused once, kept where they are, and refused in one line where wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.models.fuse import (
    ReparameterizationError,
    fusing_method,
    has_reparameterizable_blocks,
    reparameterize,
)
from reptrt.models.fuse_check import LARGEST_ERROR, require_same_function
from tests import user_blocks
from tests.tiny_networks import randomize
from tests.user_blocks import BLOCKS, MobileOne, Neck, RepOpt, RepVgg, Stem, classifier

SIZE = (12, 12)


def images(channels: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, channels, *SIZE, generator=generator)


def difference(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        expected = one(x)
        return float((other(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_a_user_becomes_one_convolution(name: str) -> None:
    block = randomize(BLOCKS[name]())
    deployed = reparameterize(block)
    parts = list(deployed.modules())
    assert sum(isinstance(part, nn.Conv2d) for part in parts) == 1
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts)
    assert {parameter.dtype for parameter in deployed.parameters()} == {torch.float32}
    assert difference(block, deployed, images()) < 1e-6
    again = reparameterize(deployed)
    assert torch.equal(again(images()), deployed(images()))


def test_a_network_of_all_of_them_keeps_its_function() -> None:
    network = randomize(user_blocks.everything())
    deployed = reparameterize(network)
    require_same_function(network, deployed, SIZE)
    assert difference(network, deployed, images(3)) < 1e-6
    assert [type(part) for part in deployed.modules() if isinstance(part, nn.BatchNorm2d)] == [
        nn.BatchNorm2d  # of RepOpt, which has nothing to fuse
    ]


def test_a_block_in_two_places_stays_one() -> None:
    deployed = reparameterize(randomize(user_blocks.everything()))
    assert deployed[2][1] is deployed[8]
    twice = nn.Module()
    twice.first = twice.second = user_blocks.Acnet(8, 8)
    deployed = reparameterize(twice)
    assert isinstance(deployed.first, nn.Conv2d)
    assert deployed.first is deployed.second


@pytest.mark.parametrize("container", [nn.ModuleList, lambda m: nn.ModuleDict({"keyed": m[0]})])
def test_blocks_in_containers_are_fused(container) -> None:
    network = nn.Module()
    network.blocks = container([nn.Sequential(user_blocks.Acnet(8, 8))])
    (deployed,) = reparameterize(network).blocks.children()
    assert isinstance(deployed[0], nn.Conv2d)


def test_what_is_merely_called_fuse_is_no_block() -> None:
    for module in (Stem(8), Neck(8), RepOpt(8)):
        assert fusing_method(module) is None
    network = classifier(Neck(8))
    assert not has_reparameterizable_blocks(network)
    assert difference(network, reparameterize(network), images(3)) == 0


def test_a_method_that_needs_an_argument_hides_no_other() -> None:
    class Both(RepVgg):
        def fuse(self, other: torch.Tensor) -> torch.Tensor:
            return self(other)

    assert fusing_method(Both(8, 8)) == "switch_to_deploy"


def test_a_block_without_guard_that_is_fused_already_stays_as_it_is() -> None:
    class Unguarded(MobileOne):
        def reparameterize(self) -> None:
            self.inference_mode = False
            super().reparameterize()

    once = reparameterize(randomize(Unguarded(8)))
    once.inference_mode = True
    assert set(reparameterize(once).state_dict()) == {"reparam_conv.weight", "reparam_conv.bias"}


def test_a_method_that_raises_is_named_in_one_line() -> None:
    with pytest.raises(ReparameterizationError) as caught:
        reparameterize(user_blocks.unfinished())
    assert str(caught.value).startswith(
        "2.0: switch_to_deploy() of Unfinished raises NotImplementedError: dilated convolutions; "
    )
    assert caught.value.exit_code == 2


def test_a_fused_block_that_computes_something_else_is_named_with_its_error() -> None:
    network = randomize(user_blocks.broken())
    with pytest.raises(ReparameterizationError) as caught:
        require_same_function(network, reparameterize(network), SIZE)
    line = str(caught.value)
    assert line.startswith("2.0: switch_to_deploy() of Broken changes what the block computes, by ")
    assert f"({LARGEST_ERROR:g} is allowed)" in line
    assert "\n" not in line


def test_a_fused_block_that_no_longer_runs_is_named() -> None:
    network = randomize(user_blocks.dangling())
    with pytest.raises(ReparameterizationError, match=r"^1: .* leaves a block that does not run: "):
        require_same_function(network, reparameterize(network), SIZE)


@pytest.mark.parametrize(("error", "is_refused"), [(0.5, False), (2.0, True)])
def test_the_tolerance_is_of_the_norm_of_the_blocks_output(error: float, is_refused: bool) -> None:
    network = randomize(classifier(RepVgg(8, 8)))
    deployed = reparameterize(network)
    convolution = deployed[1].rbr_reparam
    for parameter in convolution.parameters():  # the output of a ReLU scales with both
        parameter.data *= 1 + error * LARGEST_ERROR
    if is_refused:
        with pytest.raises(ReparameterizationError, match=r"by 0\.002 of the norm"):
            require_same_function(network, deployed, SIZE)
    else:
        require_same_function(network, deployed, SIZE)


def test_a_check_leaves_the_network_as_it_was() -> None:
    network = randomize(user_blocks.everything())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    require_same_function(network, reparameterize(network), SIZE)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class InPlace(nn.Module):
    """Works on its input, which is correct and no reason to refuse the block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepVgg(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x.mul_(2))

    def reparameterize(self) -> None:
        self.block.switch_to_deploy()


def test_a_block_that_works_in_place_is_compared_on_the_same_input() -> None:
    network = randomize(classifier(InPlace()))
    require_same_function(network, reparameterize(network), SIZE)


class Reads(nn.Module):
    """Keyword arguments in, a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepVgg(8, 8)

    def forward(self, *, x: torch.Tensor, scale: float) -> tuple[torch.Tensor, dict[str, object]]:
        return self.block(x * scale), {"shape": x.shape, "last": [x[:, :1]]}

    def fuse(self) -> None:
        self.block.switch_to_deploy()


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reads = Stem(8), Reads()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, rest = self.reads(x=self.stem(x), scale=0.5)
        return y + rest["last"][0]


def test_a_block_may_take_keywords_and_return_a_structure() -> None:
    network = randomize(Calls())
    deployed = reparameterize(network)
    require_same_function(network, deployed, SIZE)
    deployed.reads.block.rbr_reparam.bias.data += 1
    with pytest.raises(ReparameterizationError, match=r"^reads: fuse\(\) of Reads changes"):
        require_same_function(network, deployed, SIZE)
