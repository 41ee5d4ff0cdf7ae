from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models.byobnet import MobileOneBlock, RepVggBlock
from torch import nn

from reptrt.models.fuse import reparameterize
from reptrt.models.yolov6.blocks import RepVggBlock as Yolov6Block
from reptrt.models.yolov6.network import yolov6n_demo

BLOCKS = {
    "repvgg": lambda: RepVggBlock(8, 8),
    "repvgg, stride 2, no identity": lambda: RepVggBlock(8, 12, stride=2),
    "repvgg, grouped": lambda: RepVggBlock(8, 8, group_size=4),
    "mobileone, depthwise": lambda: MobileOneBlock(8, 8, group_size=1),
    "mobileone, depthwise, 4 branches": lambda: MobileOneBlock(
        8, 8, group_size=1, num_conv_branches=4
    ),
    "mobileone, pointwise, 4 branches": lambda: MobileOneBlock(
        8, 12, kernel_size=1, num_conv_branches=4
    ),
    "mobileone, pointwise, identity": lambda: MobileOneBlock(8, 8, kernel_size=1),
    "mobileone, stride 2": lambda: MobileOneBlock(8, 8, stride=2, group_size=1),
    "yolov6": lambda: Yolov6Block(8, 8),
    "yolov6, stride 2": lambda: Yolov6Block(8, 12, stride=2),
}


def _randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm means, variances, signs and biases that no fresh network has."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert tensor is not None
                tensor.data.normal_(generator=generator)
            assert norm.running_var is not None
            norm.running_var.uniform_(0.1, 3.0, generator=generator)
    return module.eval()


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def _branches(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_in_deploy_form_computes_the_same_in_float64(name: str) -> None:
    block = _randomize(BLOCKS[name]().double())
    images = torch.randn(
        2, 8, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    deployed = reparameterize(block)
    assert (_convolutions(deployed), _branches(deployed)) == (1, 0)
    expected = block(images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(deployed(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_a_network_in_deploy_form_has_no_branches_left_and_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=10).eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_var.uniform_(0.5, 2.0)
    images = torch.randn(1, 3, 32, 32)
    deployed = reparameterize(module)
    assert _branches(module) > 0
    assert _branches(deployed) == 0
    with torch.no_grad():
        expected, actual = module(images), deployed(images)
    # float32 for speed (depthwise float64 is slow on a CPU); the blocks above are exact in float64.
    assert (actual - expected).norm() < 1e-4 * expected.norm()


def test_a_detector_in_deploy_form_computes_the_same() -> None:
    torch.manual_seed(0)
    module = _randomize(yolov6n_demo(3).double())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    deployed = reparameterize(module)
    assert _convolutions(deployed) < _convolutions(module)
    for actual, expected in zip(deployed(images), module(images), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


def test_the_original_stays_in_train_form() -> None:
    block = _randomize(RepVggBlock(8, 8))
    before = copy.deepcopy(block.state_dict())
    reparameterize(block)
    assert block.state_dict().keys() == before.keys()
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)


def test_a_float32_kernel_is_rounded_only_once() -> None:
    block = _randomize(RepVggBlock(8, 8))
    single = reparameterize(block).reparam_conv
    double = reparameterize(copy.deepcopy(block).double()).reparam_conv
    assert isinstance(single, nn.Conv2d)
    assert isinstance(double, nn.Conv2d)
    assert single.weight.dtype == torch.float32
    assert torch.equal(single.weight, double.weight.float())
    assert torch.get_default_dtype() == torch.float32


def test_a_channel_that_batch_norm_silenced_becomes_constant() -> None:
    block = _randomize(MobileOneBlock(8, 8, group_size=1).double())
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data[3] = 0
    kernel = reparameterize(block).reparam_conv
    assert isinstance(kernel, nn.Conv2d)
    assert torch.count_nonzero(kernel.weight[3]) == 0


def test_the_deploy_form_of_the_deploy_form_is_itself() -> None:
    once = reparameterize(_randomize(nn.Sequential(RepVggBlock(8, 8))))
    twice = reparameterize(once)
    torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=0, atol=0)


def test_a_transformer_comes_back_as_an_equal_copy() -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1)
    deployed = reparameterize(module)
    assert deployed is not module
    torch.testing.assert_close(deployed.state_dict(), module.state_dict(), rtol=0, atol=0)


class _FusesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.fused = False

    def fuse(self) -> None:
        self.fused = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_fuse_method_that_returns_nothing_does_not_delete_its_block() -> None:
    deployed = reparameterize(nn.Sequential(_FusesInPlace()))
    assert isinstance(deployed, nn.Sequential)
    assert isinstance(deployed[0], _FusesInPlace)
    assert deployed[0].fused


def test_blocks_of_timm_that_return_a_new_module_are_replaced() -> None:
    torch.manual_seed(0)
    module = _randomize(timm.create_model("repvit_m0_9", num_classes=4).double())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    deployed = reparameterize(module)
    assert _branches(deployed) < _branches(module)
    torch.testing.assert_close(deployed(images), module(images), rtol=1e-6, atol=1e-8)
