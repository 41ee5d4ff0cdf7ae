"""YOLOv6's decoupled head, anchor-free, with or without distribution focal loss.

Written from the papers YOLOv6 (https://arxiv.org/abs/2209.02976) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586). With distribution focal loss
(https://arxiv.org/abs/2006.04388, equation 4) a box side is the mean of a distribution over the
distances 0, 1, ... cells; without, it is predicted as one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from reptrt.models.yolov6.blocks import ConvBnAct

_PRIOR = 0.01


class EffiDeHead(nn.Module):
    """One shared stem per level, then one convolution for each of the two tasks.

    Args:
        channels: Of the levels.
        num_classes: Number of classes.
        reg_max: Last bin of the distribution per box side, 0 for a plain distance.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, reg_max: int = 0) -> None:
        super().__init__()
        self.stems = nn.ModuleList(ConvBnAct(c, c, act=nn.SiLU) for c in channels)
        self.cls_convs = nn.ModuleList(ConvBnAct(c, c, 3, act=nn.SiLU) for c in channels)
        self.reg_convs = nn.ModuleList(ConvBnAct(c, c, 3, act=nn.SiLU) for c in channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4 * (reg_max + 1), 1) for c in channels)
        self.integral = Integral(reg_max) if reg_max else nn.Identity()
        self._initialize_predictions()

    def forward(
        self, features: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return, per level, class logits `[n, num_classes, h, w]` and distances `[n, 4, h, w]`."""
        maps = []
        for index, feature in enumerate(features):
            x = self.stems[index](feature)
            logits = self.cls_preds[index](self.cls_convs[index](x))
            sides = self.reg_preds[index](self.reg_convs[index](x))
            maps.append((logits, self.integral(sides)))
        return maps

    @torch.no_grad()
    def _initialize_predictions(self) -> None:
        """Start from the prior probability 0.01 everywhere and boxes two cells wide."""
        for layers, bias in (
            (self.cls_preds, math.log(_PRIOR / (1 - _PRIOR))),
            (self.reg_preds, 1.0),
        ):
            for layer in layers:
                assert isinstance(layer, nn.Conv2d)
                assert layer.bias is not None
                layer.weight.zero_()
                layer.bias.fill_(bias)


class Integral(nn.Module):
    """Mean of each box side's distribution over the distances 0 .. reg_max, in cells."""

    distances: torch.Tensor

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        distances = torch.arange(reg_max + 1, dtype=torch.float32).view(1, 1, -1, 1)
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits `[n, 4 * (reg_max + 1), h, w]` to distances `[n, 4, h, w]`."""
        bins, height, width = self.distances.shape[2], logits.shape[2], logits.shape[3]
        shares = logits.reshape(-1, 4, bins, height * width).softmax(dim=2)
        return (shares * self.distances).sum(dim=2).reshape(-1, 4, height, width)
