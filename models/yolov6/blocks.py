"""Building blocks of YOLOv6: the RepVGG block, stages of blocks, upsampling and fusion of levels.

Written from the papers: RepVGG (https://arxiv.org/abs/2101.03697, section 3.3 for the fusion of the
branches), YOLOv6 (https://arxiv.org/abs/2209.02976, CSPStackRep in section 2.1) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586, BiFusion in section 2.1). Attribute names are those of the official
state dicts (release 0.4.0), so that published tensors keep their names.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

BN_EPS = 1e-3
BN_MOMENTUM = 0.03

Activation = type[nn.ReLU] | type[nn.SiLU]


class Block(Protocol):
    """What stages are made of: a 3x3 block, called with its channels and, for half the size, 2."""

    def __call__(self, in_channels: int, out_channels: int, stride: int = 1, /) -> nn.Module:
        """Build the block."""


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with YOLOv6's epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class ConvBn(nn.Sequential):
    """Bias-free convolution, then batch norm; the children are called `conv` and `bn`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn = batch_norm(out_channels)


class ConvBnAct(nn.Module):
    """Convolution, batch norm and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        act: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.block = ConvBn(in_channels, out_channels, kernel, stride)
        self.act = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h / stride, w / stride]`."""
        out: torch.Tensor = self.act(self.block(x))
        return out


class RepVggBlock(nn.Module):
    """ReLU of the sum of a 3x3 branch, a 1x1 branch and, where shapes allow, an identity branch.

    The train form has the branches `rbr_dense`, `rbr_1x1` and `rbr_identity` (None where stride or
    channels change); the deploy form has the single convolution `rbr_reparam`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.rbr_dense: ConvBn | None = ConvBn(in_channels, out_channels, 3, stride, groups)
        self.rbr_1x1: ConvBn | None = ConvBn(in_channels, out_channels, 1, stride, groups)
        has_identity = in_channels == out_channels and stride == 1
        self.rbr_identity: nn.BatchNorm2d | None = batch_norm(in_channels) if has_identity else None
        self.rbr_reparam: nn.Conv2d | None = None
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h / stride, w / stride]`."""
        if self.rbr_reparam is not None:
            merged: torch.Tensor = self.act(self.rbr_reparam(x))
            return merged
        assert self.rbr_dense is not None
        assert self.rbr_1x1 is not None
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            total = total + self.rbr_identity(x)
        out: torch.Tensor = self.act(total)
        return out

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Replace the branches by one equal convolution, in place; a second call does nothing."""
        if self.rbr_dense is None or self.rbr_1x1 is None:
            return
        weight, bias = fuse_rep_vgg_branches(self.rbr_dense, self.rbr_1x1, self.rbr_identity)
        dense = self.rbr_dense.conv
        merged = nn.Conv2d(
            dense.in_channels, dense.out_channels, 3, self.stride, 1, groups=dense.groups
        ).to(dense.weight)
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)  # type: ignore[union-attr]
        merged.train(self.training)
        self.rbr_reparam = merged
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None


def fuse_rep_vgg_branches(
    dense: ConvBn, pointwise: ConvBn, identity: nn.BatchNorm2d | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the three branches as one 3x3 convolution, in float64.

    Returns:
        The kernel `[out, in / groups, 3, 3]` and the bias `[out]`.
    """
    weight, bias = _fold(dense.conv.weight.double(), dense.bn)
    small, small_bias = _fold(pointwise.conv.weight.double(), pointwise.bn)
    weight, bias = weight + F.pad(small, (1, 1, 1, 1)), bias + small_bias
    if identity is not None:
        out_channels, group_width = weight.shape[:2]
        unit = torch.zeros_like(weight)
        rows = torch.arange(out_channels, device=weight.device)
        unit[rows, rows % group_width, 1, 1] = 1.0
        unit, unit_bias = _fold(unit, identity)
        weight, bias = weight + unit, bias + unit_bias
    return weight, bias


def _fold(weight: torch.Tensor, bn: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return kernel and bias of `bn(conv(x))` in evaluation mode; `weight` is float64."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return weight * gain[:, None, None, None], bn.bias.double() - bn.running_mean.double() * gain


def conv_relu(in_channels: int, out_channels: int, stride: int = 1, /) -> ConvBnAct:
    """Return the block of training mode `conv_relu`: a 3x3 convolution, batch norm and ReLU."""
    return ConvBnAct(in_channels, out_channels, 3, stride)


def conv_silu(in_channels: int, out_channels: int, stride: int = 1, /) -> ConvBnAct:
    """Return the block of training mode `conv_silu`: a 3x3 convolution, batch norm and SiLU."""
    return ConvBnAct(in_channels, out_channels, 3, stride, nn.SiLU)


class RepBlock(nn.Module):
    """`repeats` blocks in a row; the first one changes the channel count."""

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, block: Block = RepVggBlock
    ) -> None:
        super().__init__()
        self.conv1 = block(in_channels, out_channels)
        rest = [block(out_channels, out_channels) for _ in range(repeats - 1)]
        self.block = nn.Sequential(*rest) if rest else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h, w]`."""
        x = self.conv1(x)
        return x if self.block is None else self.block(x)


class BottleRep(nn.Module):
    """Two blocks and a shortcut with a learned weight: `block(block(x)) + alpha * x`."""

    def __init__(self, channels: int, block: Block) -> None:
        super().__init__()
        self.conv1 = block(channels, channels)
        self.conv2 = block(channels, channels)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, c, h, w]` to `[n, c, h, w]`."""
        out: torch.Tensor = self.conv2(self.conv1(x)) + self.alpha * x
        return out


class BepC3(nn.Module):
    """CSPStackRep: half as many `BottleRep` as `repeats` on one branch, nothing on the other.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        repeats: Blocks that a stage of this depth has, two per `BottleRep`.
        expansion: Channels of each branch over `out_channels`.
        block: What each `BottleRep` is made of.
        act: Activation of the 1x1 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int,
        expansion: float,
        block: Block,
        act: Activation,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = ConvBnAct(in_channels, hidden, act=act)
        self.cv2 = ConvBnAct(in_channels, hidden, act=act)
        self.cv3 = ConvBnAct(2 * hidden, out_channels, act=act)

        def bottle(in_channels: int, out_channels: int, stride: int = 1, /) -> BottleRep:
            return BottleRep(out_channels, block)

        self.m = RepBlock(hidden, hidden, repeats // 2, bottle)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h, w]`."""
        out: torch.Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))
        return out


class Upsample(nn.Module):
    """Learned upsampling by two: a 2x2 transposed convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample_transpose = nn.ConvTranspose2d(channels, channels, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, c, h, w]` to `[n, c, 2h, 2w]`."""
        out: torch.Tensor = self.upsample_transpose(x)
        return out


class BiFusion(nn.Module):
    """Fuse three neighbouring levels: deeper one upsampled, same one, shallower one downsampled."""

    def __init__(self, same_channels: int, shallow_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = ConvBnAct(same_channels, out_channels)
        self.cv2 = ConvBnAct(shallow_channels, out_channels)
        self.cv3 = ConvBnAct(out_channels * 3, out_channels)
        self.upsample = Upsample(out_channels)
        self.downsample = ConvBnAct(out_channels, out_channels, 3, 2)

    def forward(
        self, deep: torch.Tensor, same: torch.Tensor, shallow: torch.Tensor
    ) -> torch.Tensor:
        """Return `[n, out, h, w]`; `deep` is `[n, out, h/2, w/2]`, `shallow` is `[n, c, 2h, 2w]`."""
        levels = (self.upsample(deep), self.cv1(same), self.downsample(self.cv2(shallow)))
        out: torch.Tensor = self.cv3(torch.cat(levels, dim=1))
        return out
