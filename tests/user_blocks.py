"""Re-parameterizable blocks as users write them, with the names and habits of their papers' code.

RepVGG (arXiv:2101.03697), MobileOne (2206.04040), ACNet (1908.03930), Diverse Branch Block
(2103.13425), QARepVGG (2212.01593) and RepOpt-VGG (2205.15242), each written anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Kernel = tuple[torch.Tensor, torch.Tensor]


def conv_bn(in_channels: int, out_channels: int, kernel: int, **options: object) -> nn.Sequential:
    block = nn.Sequential()
    options = {"padding": kernel // 2, **options}
    block.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel, bias=False, **options))
    block.add_module("bn", nn.BatchNorm2d(out_channels))
    return block


def folded(kernel: torch.Tensor, norm: nn.BatchNorm2d) -> Kernel:
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return kernel * gain.view(-1, 1, 1, 1), norm.bias - norm.running_mean * gain


def centred(kernel: torch.Tensor, side: int = 3) -> torch.Tensor:
    rows, columns = (side - kernel.shape[2]) // 2, (side - kernel.shape[3]) // 2
    return F.pad(kernel, [columns, columns, rows, rows])


def impulse(channels: int, *, depthwise: bool = False) -> torch.Tensor:
    """Kernel of the identity, float32 whatever the block's type is, as NumPy users make it."""
    kernel = torch.ones(channels, 1) if depthwise else torch.eye(channels)
    return kernel.float()[..., None, None]


class RepVgg(nn.Module):
    """`switch_to_deploy()`: rbr_dense, rbr_1x1 and rbr_identity become rbr_reparam."""

    merged: tuple[str, ...] = ("rbr_dense", "rbr_1x1", "rbr_identity")

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        self.rbr_identity = (
            nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        )
        self.rbr_dense = conv_bn(in_channels, out_channels, 3, stride=stride)
        self.rbr_1x1 = conv_bn(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.rbr_reparam(x))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + identity)

    def branches(self) -> list[Kernel]:
        found = [folded(centred(b.conv.weight), b.bn) for b in (self.rbr_dense, self.rbr_1x1)]
        if self.rbr_identity is not None:
            channels = self.rbr_identity.num_features
            found.append(folded(centred(impulse(channels)), self.rbr_identity))
        return found

    def switch_to_deploy(self) -> None:
        if hasattr(self, "rbr_reparam"):
            return
        kernels, biases = zip(*self.branches(), strict=True)
        dense = self.rbr_dense.conv
        self.rbr_reparam = nn.Conv2d(
            dense.in_channels, dense.out_channels, 3, stride=dense.stride, padding=1
        )
        self.rbr_reparam.weight.data, self.rbr_reparam.bias.data = sum(kernels), sum(biases)
        for name in self.merged:
            delattr(self, name)


class QaRepVgg(RepVgg):
    """No BatchNorm in the 1x1 and identity branches, one behind the sum."""

    merged = (*RepVgg.merged, "bn")

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.rbr_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.rbr_identity = nn.Identity() if self.rbr_identity is not None else None
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.rbr_reparam(x))
        identity = 0 if self.rbr_identity is None else x
        return self.nonlinearity(self.bn(self.rbr_dense(x) + self.rbr_1x1(x) + identity))

    def branches(self) -> list[Kernel]:
        kernel, bias = folded(self.rbr_dense.conv.weight, self.rbr_dense.bn)
        kernel = kernel + centred(self.rbr_1x1.weight)
        if self.rbr_identity is not None:
            kernel = kernel + centred(impulse(len(kernel)))
        kernel, shift = folded(kernel, self.bn)
        gain = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        return [(kernel, shift + bias * gain)]


class MobileOne(nn.Module):
    """`reparameterize()`: rbr_conv (a list), rbr_scale and rbr_skip; depthwise; reparam_conv."""

    def __init__(self, channels: int, num_branches: int = 3) -> None:
        super().__init__()
        self.inference_mode = False
        self.activation = nn.ReLU()
        self.rbr_skip = nn.BatchNorm2d(channels)
        self.rbr_conv = nn.ModuleList(
            conv_bn(channels, channels, 3, groups=channels) for _ in range(num_branches)
        )
        self.rbr_scale = conv_bn(channels, channels, 1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.inference_mode:
            return self.activation(self.reparam_conv(x))
        branches = [self.rbr_skip, self.rbr_scale, *self.rbr_conv]
        return self.activation(sum(branch(x) for branch in branches))

    def reparameterize(self) -> None:
        if self.inference_mode:
            return
        channels = self.rbr_skip.num_features
        parts = [folded(centred(b.conv.weight), b.bn) for b in [*self.rbr_conv, self.rbr_scale]]
        parts.append(folded(centred(impulse(channels, depthwise=True)), self.rbr_skip))
        kernels, biases = zip(*parts, strict=True)
        self.reparam_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.reparam_conv.weight.data, self.reparam_conv.bias.data = sum(kernels), sum(biases)
        for name in ("rbr_skip", "rbr_conv", "rbr_scale"):
            delattr(self, name)
        self.inference_mode = True


class Acnet(nn.Module):
    """`fuse()` returns the convolution: 3x3, 1x3 and 3x1 side by side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.square = conv_bn(in_channels, out_channels, 3)
        self.horizontal = conv_bn(in_channels, out_channels, 3)
        self.vertical = conv_bn(in_channels, out_channels, 3)
        self.horizontal.conv = nn.Conv2d(
            in_channels, out_channels, (1, 3), padding=(0, 1), bias=False
        )
        self.vertical.conv = nn.Conv2d(
            in_channels, out_channels, (3, 1), padding=(1, 0), bias=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.square(x) + self.horizontal(x) + self.vertical(x)

    def fuse(self) -> nn.Module:
        parts = [folded(centred(branch.conv.weight), branch.bn) for branch in self.children()]
        kernels, biases = zip(*parts, strict=True)
        dense = self.square.conv
        merged = nn.Conv2d(dense.in_channels, dense.out_channels, 3, padding=1)
        merged.weight.data, merged.bias.data = sum(kernels), sum(biases)
        return merged


class DiverseBranch(nn.Module):
    """`switch_to_deploy()`: 3x3, 1x1 then 3x3, and 1x1 then average; the method multiplies kernels.

    It insists on float32, as code does that makes its constants so.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.dbb_origin = conv_bn(in_channels, out_channels, 3)
        self.dbb_1x1 = conv_bn(in_channels, out_channels, 1)
        self.dbb_kxk = conv_bn(out_channels, out_channels, 3, padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "dbb_reparam"):
            return self.dbb_reparam(x)
        inner = F.pad(self.dbb_1x1(x), [1, 1, 1, 1])
        border = F.pad(torch.ones_like(x[:1, :1]), [1, 1, 1, 1])
        _, bias = folded(self.dbb_1x1.conv.weight, self.dbb_1x1.bn)
        inner = inner + (1 - border) * bias.view(
            1, -1, 1, 1
        )  # the padding that DBB's BNAndPad adds
        return self.dbb_origin(x) + self.dbb_kxk(inner)

    def switch_to_deploy(self) -> None:
        if hasattr(self, "dbb_reparam"):
            return
        origin, first, second = (
            folded(b.conv.weight, b.bn) for b in (self.dbb_origin, self.dbb_1x1, self.dbb_kxk)
        )
        identity = torch.eye(first[0].shape[0], dtype=torch.float32)[..., None, None]
        through = F.conv2d(F.conv2d(second[0], identity), first[0].permute(1, 0, 2, 3))
        bias = (second[0] * first[1].view(1, -1, 1, 1)).sum((1, 2, 3)) + second[1]
        out_channels, in_channels = origin[0].shape[:2]
        self.dbb_reparam = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dbb_reparam.weight.data = origin[0] + through
        self.dbb_reparam.bias.data = origin[1] + bias
        for name in ("dbb_origin", "dbb_1x1", "dbb_kxk"):
            delattr(self, name)


class RepOpt(nn.Module):
    """RepOpt-VGG: plain from the start, nothing to fuse but the BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Stem(nn.Module):
    """A child called `fuse`, and a method of that name with an argument in `Neck`: no blocks."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(3, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fuse(x))


class Neck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def fuse(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([one, other], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.fuse(x, -x))


def classifier(*blocks: nn.Module, channels: int = 8, num_classes: int = 3) -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(Stem(channels), *blocks, *head)


class Broken(RepVgg):
    """Forgets the 1x1 branch."""

    def branches(self) -> list[Kernel]:
        first, _, *rest = super().branches()
        return [first, *rest]


class Unfinished(RepVgg):
    """Raises."""

    def switch_to_deploy(self) -> None:
        raise NotImplementedError("dilated\nconvolutions")


class Dangling(RepVgg):
    """Does not run any more when it is fused."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": lambda: RepVgg(8, 8),
    "RepVGG, stride 2": lambda: RepVgg(8, 8, stride=2),
    "QARepVGG": lambda: QaRepVgg(8, 8),
    "MobileOne": lambda: MobileOne(8),
    "ACNet": lambda: Acnet(8, 8),
    "DBB": lambda: DiverseBranch(8, 8),
}


def everything(num_classes: int = 3) -> nn.Module:
    """All kinds of blocks, in lists, dicts and each other, one of them in two places."""
    torch.manual_seed(0)
    shared = RepVgg(8, 8)
    return classifier(
        RepVgg(8, 8, stride=2),
        nn.Sequential(nn.ModuleDict({"first": MobileOne(8)})["first"], shared),
        QaRepVgg(8, 8),
        Acnet(8, 8),
        nn.ReLU(),
        DiverseBranch(8, 8),
        nn.ReLU(),
        shared,
        RepOpt(8),
        Neck(8),
        num_classes=num_classes,
    )


def broken() -> nn.Module:
    return classifier(RepVgg(8, 8), nn.Sequential(Broken(8, 8)))


def unfinished() -> nn.Module:
    return classifier(RepVgg(8, 8), nn.Sequential(Unfinished(8, 8)))


def dangling() -> nn.Module:
    return classifier(Dangling(8, 8))
