from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from timm.layers import SqueezeExcite
from timm.models.byobnet import LayerFn, MobileOneBlock
from timm.models.byobnet import RepVggBlock as TimmRepVggBlock
from timm.models.repvit import RepVggDw
from torch import nn

from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.reconstruction.qprep import (
    INITIALISATIONS,
    factor_out,
    fold,
    protect_reparameterization,
)
from reptrt.models.fuse import reparameterize
from reptrt.models.yolov6.blocks import RepVggBlock
from tests.tiny_networks import NETWORKS, randomize, traced

CHANNELS = 6


class DiverseBlock(nn.Module):
    """A 3x3 branch and one of three convolutions, in the manner of RepVGG's `switch_to_deploy`."""

    def __init__(self, dense_norm: bool, sequence_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ZeroPad2d(1)]
        for kernel in (1, 3, 1):
            layers.append(nn.Conv2d(CHANNELS, CHANNELS, kernel))
            layers += [nn.BatchNorm2d(CHANNELS)] if sequence_norm else []
        self.merged = nn.Identity()
        self.attention = SqueezeExcite(CHANNELS)
        self.sequence = nn.Sequential(*layers)
        self.dense = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS) if dense_norm else nn.Identity()

    def branches(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dense(x)) + self.sequence(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deployed = isinstance(self.merged, nn.Conv2d)
        return self.merged(x) if deployed else self.branches(x)

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        impulses = torch.eye(CHANNELS * 9, dtype=torch.float64).view(-1, CHANNELS, 3, 3)
        bias = self.branches(torch.zeros_like(impulses[:1]))[0, :, 1, 1]
        kernel = self.branches(impulses)[:, :, 1, 1] - bias
        self.merged = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.merged.weight.copy_(kernel.T.reshape(CHANNELS, CHANNELS, 3, 3))
        self.merged.bias.copy_(bias)
        del self.sequence, self.dense, self.norm


class NestingBlock(nn.Module):
    """Two blocks in a block: a convolution takes the place of the first, one appears in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = RepVggDw(CHANNELS, 3)
        self.expand = RepVggBlock(CHANNELS, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expand(self.mix(x))

    def reparameterize(self) -> None:
        """All that can be fused is fused inside."""


class ThreeParts(nn.Module):
    """Convolutions of equal width, merged side by side, and one that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        for part, convolution in self.parts():
            self.add_module(part, nn.Sequential(convolution, nn.BatchNorm2d(CHANNELS)))
        self.kept = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))

    def parts(self) -> list[tuple[str, nn.Conv2d]]:
        convolution = partial(nn.Conv2d, CHANNELS, CHANNELS)
        depthwise = convolution(3, groups=CHANNELS)
        return [("dense", convolution(3)), ("depthwise", depthwise), ("pointwise", convolution(1))]

    def switch_to_deploy(self) -> None:
        for part, convolution in self.parts():
            delattr(self, part)
            self.add_module(f"{part}_merged", convolution)


BLOCKS = {
    "timm_repvgg": (lambda: TimmRepVggBlock(CHANNELS, CHANNELS), "conv_kxk.bn"),
    "timm_repvgg_grouped": (
        lambda: TimmRepVggBlock(CHANNELS, 12, stride=2, group_size=3),
        "conv_kxk.bn",
    ),
    "mobileone_depthwise": (
        lambda: MobileOneBlock(CHANNELS, CHANNELS, group_size=1, num_conv_branches=3),
        "conv_kxk.0.bn",
    ),
    "mobileone_pointwise": (
        lambda: MobileOneBlock(CHANNELS, 8, kernel_size=1, num_conv_branches=2),
        "conv_kxk.0.bn",
    ),
    "yolov6": (lambda: RepVggBlock(CHANNELS, CHANNELS), "rbr_dense.bn"),
    "user": (partial(DiverseBlock, dense_norm=True, sequence_norm=True), "norm"),
    "user_dense_without_norm": (
        partial(DiverseBlock, dense_norm=False, sequence_norm=True),
        "sequence.6",
    ),
    "user_without_norms": (partial(DiverseBlock, dense_norm=False, sequence_norm=False), None),
}


def both_forms(name: str) -> tuple[nn.Module, nn.Module, str]:
    """A block without its activation, its deploy form, and the merged convolution's name."""
    train = randomize(BLOCKS[name][0]()).double()
    train.act = nn.Identity()
    deploy = reparameterize(train)
    known = dict(train.named_modules())
    merged = [
        path
        for path, module in deploy.named_modules()
        if isinstance(module, nn.Conv2d) and not isinstance(known.get(path), nn.Conv2d)
    ]
    assert len(merged) == 1
    return train, deploy, merged[0]


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, CHANNELS, 7, 7, generator=generator, dtype=torch.float64)


def initial(initialisation: str, train: nn.Module, deploy: nn.Module, path: str) -> ChannelAffine:
    convolution = deploy.get_submodule(path)
    identity = ChannelAffine.identity(convolution.out_channels)
    if initialisation == "dense_branch":
        return protect_reparameterization(train, deploy).get(path, identity)
    if initialisation == "statistics":
        output = convolution(images())
        return ChannelAffine.from_statistics(output.mean((0, 2, 3)), output.std((0, 2, 3)))
    return identity


def per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_every_initialisation_preserves_the_float_function(name: str, initialisation: str) -> None:
    train, deploy, path = both_forms(name)
    convolution = deploy.get_submodule(path)
    affine = initial(initialisation, train, deploy, path)
    weight, bias = factor_out(convolution.weight, convolution.bias, affine)
    convolution.weight.copy_(weight)
    convolution.bias.copy_(bias)
    output = per_channel(affine.gain) * deploy(images()) + per_channel(affine.shift)
    torch.testing.assert_close(output, train(images()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_norm_of_the_largest_kernel_is_factored_out(name: str) -> None:
    train, deploy, path = both_forms(name)
    affines = protect_reparameterization(train, deploy)
    norm_path = BLOCKS[name][1]
    assert list(affines) == ([] if norm_path is None else [path])
    if norm_path is not None:
        norm = train.get_submodule(norm_path)
        probe = (
            torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1).expand(2, norm.num_features, 1, 1)
        )
        at_zero, at_one = norm(probe).flatten(1)
        torch.testing.assert_close(affines[path].shift, at_zero)
        torch.testing.assert_close(affines[path].gain, at_one - at_zero)


@pytest.mark.parametrize("name", ["timm_repvgg", "mobileone_depthwise", "yolov6"])
def test_weights_that_are_fused_already_have_no_entry(name: str) -> None:
    fused = nn.Sequential(both_forms(name)[1])
    assert protect_reparameterization(fused, reparameterize(fused)) == {}


def test_entries_bear_the_names_that_quantized_layers_have() -> None:
    train = randomize(NETWORKS["reparameterized"]())
    affines = protect_reparameterization(train, reparameterize(train))
    layers = set(place_quantizers(traced("reparameterized").graph).layers.values())
    blocks = {"0.rbr_reparam", "1.rbr_reparam", "2.reparam_conv", "3.reparam_conv"}
    assert set(affines) == blocks
    assert blocks < layers


def test_blocks_inside_a_block_and_blocks_that_become_a_convolution_are_found() -> None:
    train = nn.Sequential(randomize(NestingBlock()))
    affines = protect_reparameterization(train, reparameterize(train))
    assert set(affines) == {"0.mix", "0.expand.rbr_reparam"}
    norm = train[0].mix.conv.bn
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(affines["0.mix"].gain, gain)


def test_merged_convolutions_of_one_block_take_their_own_norms() -> None:
    train = randomize(ThreeParts())
    affines = protect_reparameterization(train, reparameterize(train))
    assert set(affines) == {"dense_merged", "depthwise_merged", "pointwise_merged"}
    for name, affine in affines.items():
        norm = train.get_submodule(name.removesuffix("_merged"))[1]
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        torch.testing.assert_close(affine.gain, gain)


def test_an_attention_in_a_block_is_not_taken_for_the_merged_convolution() -> None:
    layers = LayerFn(attn=SqueezeExcite)
    train = randomize(TimmRepVggBlock(16, 16, layers=layers))
    affines = protect_reparameterization(train, reparameterize(train))
    assert list(affines) == ["reparam_conv"]


def test_a_kernel_of_two_channels_is_factored_out_as_by_hand() -> None:
    affine = ChannelAffine(gain=torch.tensor([2.0, -0.5]), shift=torch.tensor([1.0, 3.0]))
    weight, bias = factor_out(
        torch.tensor([4.0, 4.0]).view(2, 1, 1, 1), torch.tensor([5.0, 5.0]), affine
    )
    assert weight.flatten().tolist() == [2.0, -8.0]
    assert bias.tolist() == [2.0, -4.0]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("num_bits", [4, 8])
@torch.no_grad()
def test_all_initialisations_have_the_same_integer_weights(name: str, num_bits: int) -> None:
    train, deploy, path = both_forms(name)
    if BLOCKS[name][1] is not None:
        train.get_submodule(BLOCKS[name][1]).weight[::2] *= -1.0  # negative gains
        deploy = reparameterize(train)
    convolution = deploy.get_submodule(path)
    folded = []
    for initialisation in INITIALISATIONS:
        affine = initial(initialisation, train, deploy, path)
        weight, bias = factor_out(convolution.weight, convolution.bias, affine)
        quantizer = TensorQuantizer(IntegerGrid.for_weights(num_bits), len(bias), axis=0).double()
        quantizer.set_amax(weight.abs().amax((1, 2, 3)))
        folded.append(fold(quantizer.quantize(weight), quantizer.scale, bias, affine))
    for codes, scale, bias in folded[1:]:
        assert torch.equal(codes, folded[0][0])
        torch.testing.assert_close(scale, folded[0][1])
        torch.testing.assert_close(bias, folded[0][2])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_folding_negative_gains_equals_the_affine_after_the_convolution(dtype: torch.dtype) -> None:
    codes = torch.tensor([[127, -3], [-127, 5], [7, 0]]).view(3, 2, 1, 1).to(dtype)
    scale, bias = torch.tensor([0.1, 0.2, 0.4]).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    gain, shift = torch.tensor([-0.5, 2.0, -3.0]), torch.tensor([0.25, -1.0, 4.0])
    affine = ChannelAffine(gain.double(), shift.double())
    x = images()[:, :2]
    convolution = partial(nn.functional.conv2d, x)
    after = convolution(codes * scale.view(-1, 1, 1, 1), bias) * per_channel(affine.gain)
    new_codes, new_scale, new_bias = fold(codes, scale, bias, affine)
    assert new_codes.dtype == dtype
    assert new_codes.flatten().tolist() == [-127, 3, -127, 5, -7, 0]
    assert bool((new_scale > 0).all())
    inside = convolution(new_codes * new_scale.view(-1, 1, 1, 1), new_bias)
    torch.testing.assert_close(inside, after + per_channel(affine.shift))


@torch.no_grad()
def test_a_channel_without_a_gamma_keeps_gain_1_and_shift_0() -> None:
    train = randomize(RepVggBlock(CHANNELS, CHANNELS))
    train.rbr_dense.bn.weight[:3] = torch.tensor([0.0, 1e-9, -1e-3])
    affine = protect_reparameterization(train, reparameterize(train))["rbr_reparam"]
    assert affine.gain[:2].tolist() == [1.0, 1.0]
    assert affine.shift[:2].tolist() == [0.0, 0.0]
    assert -2e-3 < float(affine.gain[2]) < -5e-4
    dead = copy.deepcopy(train)
    dead.rbr_dense.bn.weight.zero_()
    affine = protect_reparameterization(dead, reparameterize(dead))["rbr_reparam"]
    assert affine.gain.tolist() == [1.0] * CHANNELS
    assert affine.shift.tolist() == [0.0] * CHANNELS


def test_a_channel_that_never_varies_or_is_not_finite_keeps_gain_1_and_shift_0() -> None:
    mean = torch.tensor([5.0, -2.0, 1.0, float("inf")])
    std = torch.tensor([0.0, 0.5, float("nan"), 1.0])
    affine = ChannelAffine.from_statistics(mean, std)
    assert affine.gain.tolist() == [1.0, 0.5, 1.0, 1.0]
    assert affine.shift.tolist() == [0.0, -2.0, 0.0, 0.0]
