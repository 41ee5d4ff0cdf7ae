"""Pooling at the end of YOLOv6's backbone: SPPF, and SPPF inside a cross-stage-partial split.

Written from the papers YOLOv6 (https://arxiv.org/abs/2209.02976) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586, SimCSPSPPF in section 2.4), with the official attribute names.
"""

from __future__ import annotations

import torch
from torch import nn

from reptrt.models.yolov6.blocks import Activation, ConvBnAct


class SppfModule(nn.Module):
    """Three chained 5x5 max-poolings; all four stages are concatenated and mixed."""

    def __init__(self, in_channels: int, out_channels: int, act: Activation = nn.ReLU) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = ConvBnAct(in_channels, hidden, act=act)
        self.cv2 = ConvBnAct(hidden * 4, out_channels, act=act)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h, w]`."""
        out: torch.Tensor = self.cv2(_pool_pyramid(self.cv1(x), self.m))
        return out


class CspSppfModule(nn.Module):
    """The pooling pyramid on one half of a cross-stage-partial split, a 1x1 shortcut on the other."""

    def __init__(self, in_channels: int, out_channels: int, act: Activation = nn.ReLU) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = ConvBnAct(in_channels, hidden, act=act)
        self.cv2 = ConvBnAct(in_channels, hidden, act=act)
        self.cv3 = ConvBnAct(hidden, hidden, 3, act=act)
        self.cv4 = ConvBnAct(hidden, hidden, act=act)
        self.m = nn.MaxPool2d(5, 1, 2)
        self.cv5 = ConvBnAct(hidden * 4, hidden, act=act)
        self.cv6 = ConvBnAct(hidden, hidden, 3, act=act)
        self.cv7 = ConvBnAct(hidden * 2, out_channels, act=act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h, w]`."""
        pyramid = _pool_pyramid(self.cv4(self.cv3(self.cv1(x))), self.m)
        deep = self.cv6(self.cv5(pyramid))
        out: torch.Tensor = self.cv7(torch.cat((self.cv2(x), deep), dim=1))
        return out


def _pool_pyramid(x: torch.Tensor, pool: nn.MaxPool2d) -> torch.Tensor:
    once = pool(x)
    twice = pool(once)
    return torch.cat((x, once, twice, pool(twice)), dim=1)


class SimSppf(nn.Module):
    """SimSPPF, or SPPF with SiLU: the pooling at the end of the backbone."""

    def __init__(self, in_channels: int, out_channels: int, act: Activation = nn.ReLU) -> None:
        super().__init__()
        self.sppf = SppfModule(in_channels, out_channels, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h, w]`."""
        out: torch.Tensor = self.sppf(x)
        return out


class SimCspSppf(nn.Module):
    """SimCSPSPPF, or CSPSPPF with SiLU: the same inside a cross-stage-partial split."""

    def __init__(self, in_channels: int, out_channels: int, act: Activation = nn.ReLU) -> None:
        super().__init__()
        self.cspsppf = CspSppfModule(in_channels, out_channels, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[n, in, h, w]` to `[n, out, h, w]`."""
        out: torch.Tensor = self.cspsppf(x)
        return out
