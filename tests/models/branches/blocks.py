"""Blocks as papers and users write them, without a method that fuses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.byobnet import MobileOneBlock
from timm.models.byobnet import RepVggBlock as TimmRepVggBlock
from torch import nn

from reptrt.models.yolov6.blocks import RepVggBlock

CHANNELS = 6


def conv_norm(
    out: int, kernel: int | tuple[int, int], channels: int = CHANNELS, **options: int
) -> nn.Sequential:
    """A convolution that keeps the size for stride 1, and its BatchNorm."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = options.get("dilation", 1)
    padding = tuple(dilation * (side // 2) for side in sides)
    conv = nn.Conv2d(channels, out, sides, padding=padding, bias=False, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Branches(nn.Module):
    """The sum of branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x) for branch in self.branches)


class ImpliedPadding(nn.Module):
    """A BatchNorm whose output is padded with what it makes of zeros, as DBB's own code pads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.pad(self.norm(x), [1] * 4)
        assert self.norm.running_var is not None
        assert self.norm.running_mean is not None
        deviation = torch.sqrt(self.norm.running_var + self.norm.eps)
        border = self.norm.bias - self.norm.running_mean * self.norm.weight / deviation
        border = border.view(1, -1, 1, 1)
        out[:, :, 0:1, :] = border
        out[:, :, -1:, :] = border
        out[:, :, :, 0:1] = border
        out[:, :, :, -1:] = border
        return out


def dbb(out: int = 8, stride: int = 1) -> nn.Module:
    """Diverse Branch Block: 3x3; 1x1; 1x1 and 3x3; 1x1 and an average."""
    last = {"stride": stride, "bias": False}
    return Branches(
        conv_norm(out, 3, stride=stride),
        conv_norm(out, 1, stride=stride),
        nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), ImpliedPadding(CHANNELS),
            nn.Conv2d(CHANNELS, out, 3, **last), nn.BatchNorm2d(out),  # type: ignore[arg-type]
        ),
        nn.Sequential(
            nn.Conv2d(CHANNELS, out, 1, bias=False), ImpliedPadding(out),
            nn.AvgPool2d(3, stride), nn.BatchNorm2d(out),
        ),
    )  # fmt: skip


class Gained(nn.Module):
    """Another module's output times a learned gain per channel, plus half of it."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module, self.gain = module, nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x) * self.gain - 0.5


class Lora(nn.Module):
    """A linear layer and its low-rank update, as peft leaves them side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(CHANNELS, 8)
        self.down, self.up = nn.Linear(CHANNELS, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2)
        return self.base(x) + 2.0 * self.up(self.down(x))


class Difference(nn.Module):
    """A 3x3 convolution less a 1x1 one, as a difference convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(8, 3), conv_norm(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x) - self.point(x)


class OneSidedPads(nn.Module):
    """Strided branches that are padded below and to the right, as TensorFlow pads."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = nn.Conv2d(CHANNELS, 8, 3, 2), nn.Conv2d(CHANNELS, 8, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(F.pad(x, [0, 1, 0, 1])) + self.point(x)


def without_act(block: nn.Module) -> nn.Module:
    """`block` without its activation."""
    block.act = nn.Identity()
    return block


def depthwise(*branches: tuple[int, int]) -> nn.Module:
    """Depthwise branches (kernel, dilation), and the input."""
    layers = [conv_norm(CHANNELS, k, dilation=d, groups=CHANNELS) for k, d in branches]
    return Branches(*layers, nn.Identity())


MERGED: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": lambda: Branches(conv_norm(6, 3), conv_norm(6, 1), nn.BatchNorm2d(6)),
    "RepVGG, strided": lambda: Branches(conv_norm(8, 3, stride=2), conv_norm(8, 1, stride=2)),
    "RepVGG, grouped": lambda: Branches(conv_norm(8, 3, groups=2), conv_norm(8, 1, groups=2)),
    "RepVGG of timm": lambda: without_act(TimmRepVggBlock(CHANNELS, CHANNELS)),
    "YOLOv6": lambda: without_act(RepVggBlock(CHANNELS, CHANNELS)),
    "MobileOne, depthwise": lambda: without_act(
        MobileOneBlock(CHANNELS, CHANNELS, group_size=1, num_conv_branches=3)
    ),
    "MobileOne, pointwise": lambda: without_act(
        MobileOneBlock(CHANNELS, 8, kernel_size=1, num_conv_branches=2)
    ),
    "ACNet": lambda: Branches(*(conv_norm(8, kernel) for kernel in ((3, 3), (1, 3), (3, 1)))),
    "DBB": dbb,
    "DBB, strided": partial(dbb, stride=2),
    "RepLKNet": partial(depthwise, (13, 1), (5, 1)),
    "UniRepLKNet": partial(depthwise, (9, 1), (5, 1), (3, 2), (3, 3)),
    "equal dilation": partial(depthwise, (3, 2), (3, 2)),
    "gains": lambda: Branches(Gained(conv_norm(8, 3), 8), conv_norm(8, 1)),
    "1x1 and 3x3 without bias": lambda: Branches(
        conv_norm(8, 3),
        nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), *conv_norm(8, 3)),
    ),
    "dense and depthwise": lambda: Branches(conv_norm(6, 3), conv_norm(6, 3, groups=6)),
    "average": lambda: Branches(conv_norm(6, 3), nn.AvgPool2d(3, 1, 1)),
    "difference": Difference,
    "one-sided pads": OneSidedPads,
    "low-rank update": Lora,
}


def depthwise_separable() -> Sequence[nn.Module]:
    """A depthwise and a pointwise convolution."""
    return *conv_norm(CHANNELS, 5, groups=CHANNELS), *conv_norm(CHANNELS, 1)


class ReadTwice(nn.Module):
    """A branch whose convolution is read by another operator too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.point = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            conv_norm(6, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (self.norm(y) + self.point(x)) * y.sigmoid()


KEPT: dict[str, Callable[[], nn.Module]] = {
    "a bias that a 3x3 convolution pads with zeros": lambda: Branches(
        conv_norm(8, 3), nn.Sequential(*conv_norm(CHANNELS, 1), *conv_norm(8, 3))
    ),
    "what is cheaper in two": lambda: Branches(
        nn.Sequential(*depthwise_separable()), nn.Identity()
    ),
    "an average that leaves padding out": lambda: Branches(
        conv_norm(6, 3), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    ),
    "an activation in a branch": lambda: Branches(
        nn.Sequential(*conv_norm(8, 3), nn.ReLU()), conv_norm(8, 1)
    ),
    "a branch that is read elsewhere": ReadTwice,
    "norms without a layer": lambda: Branches(nn.BatchNorm2d(6), nn.Identity()),
    "reflected borders": lambda: Branches(
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), conv_norm(6, 1)
    ),
}
