"""What tells one YOLOv6 from another: size, blocks, neck, pooling and head.

Facts of the papers YOLOv6 (https://arxiv.org/abs/2209.02976, "release 2.0" here) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586, "release 3.0"), and of the configurations that were published with
the checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from reptrt.models.yolov6.blocks import (
    Activation,
    BepC3,
    Block,
    RepBlock,
    RepVggBlock,
    conv_relu,
    conv_silu,
)
from reptrt.models.yolov6.pooling import SimCspSppf, SimSppf

BACKBONE_CHANNELS = (64, 128, 256, 512, 1024)
BACKBONE_REPEATS = (1, 6, 12, 18, 6)
NECK_CHANNELS = (256, 128, 128, 256, 256, 512)
NECK_REPEATS = 12
_REG_MAX = 16
_BLOCKS: dict[str, Block] = {
    "repvgg": RepVggBlock,
    "conv_relu": conv_relu,
    "conv_silu": conv_silu,
}


@dataclass(frozen=True)
class Yolov6Config:
    """One YOLOv6.

    Attributes:
        depth: Factor on the number of blocks per stage.
        width: Factor on the channel counts, which are rounded up to multiples of 8.
        bidirectional: Release 3.0's neck, which also reads stride-4 features (RepBi-PAN), instead of
            release 2.0's (Rep-PAN).
        csp_pooling: SimCSPSPPF instead of SimSPPF at the end of the backbone.
        csp_expansion: Channels of a BepC3's branches over its outputs; None makes stages of blocks
            in a row.
        mode: Blocks of backbone and neck, as the published configurations name their training mode.
        reg_max: Last bin of the distribution that each box side is predicted as, 0 for a plain
            distance.
    """

    depth: float
    width: float
    bidirectional: bool
    csp_pooling: bool = False
    csp_expansion: float | None = None
    mode: Literal["repvgg", "conv_relu", "conv_silu"] = "repvgg"
    reg_max: int = 0

    def channels(self, base: int) -> int:
        """Scale a channel count of the full-width network."""
        return math.ceil(base * self.width / 8) * 8

    def repeats(self, base: int) -> int:
        """Scale a block count of the full-depth network."""
        return max(round(base * self.depth), 1) if base > 1 else base

    @property
    def activation(self) -> Activation:
        """Activation of the backbone and of the neck's stages."""
        return nn.SiLU if self.mode == "conv_silu" else nn.ReLU

    def block(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        """Build one 3x3 block of the mode."""
        return _BLOCKS[self.mode](in_channels, out_channels, stride)

    def stage(self, in_channels: int, out_channels: int, base_repeats: int) -> nn.Module:
        """Build the stage that has `base_repeats` blocks in the full-depth network."""
        repeats, block = self.repeats(base_repeats), _BLOCKS[self.mode]
        if self.csp_expansion is None:
            return RepBlock(in_channels, out_channels, repeats, block)
        return BepC3(in_channels, out_channels, repeats, self.csp_expansion, block, self.activation)

    def pooling(self, channels: int) -> nn.Module:
        """Build the pooling at the end of the backbone."""
        pooling = SimCspSppf if self.csp_pooling else SimSppf
        return pooling(channels, channels, self.activation)


def _single_path(width: float, *, release3: bool) -> Yolov6Config:
    return Yolov6Config(0.33, width, bidirectional=release3, csp_pooling=release3)


def _medium(*, release3: bool) -> Yolov6Config:
    return Yolov6Config(0.60, 0.75, release3, csp_expansion=2 / 3, reg_max=_REG_MAX)


def _large(mode: Literal["repvgg", "conv_silu"], *, release3: bool) -> Yolov6Config:
    return Yolov6Config(1.0, 1.0, release3, csp_expansion=1 / 2, mode=mode, reg_max=_REG_MAX)


# By zoo name; one without a suffix is the current release. The configurations of the base models N
# and S state distributions for boxes, their published sizes (4.65 M, 13.14 M) are of plain distances:
# the distributions are the auxiliary branch that they were distilled with, as in N and S.
CONFIGS: dict[str, Yolov6Config] = {
    "yolov6n_demo": _single_path(0.125, release3=True),
    "yolov6n": _single_path(0.25, release3=True),
    "yolov6s": _single_path(0.50, release3=True),
    "yolov6m": _medium(release3=True),
    "yolov6l": _large("conv_silu", release3=True),
    "yolov6n_v2": _single_path(0.25, release3=False),
    "yolov6t": _single_path(0.375, release3=False),
    "yolov6s_v2": _single_path(0.50, release3=False),
    "yolov6m_v2": _medium(release3=False),
    "yolov6l_relu": _large("repvgg", release3=False),
    "yolov6l_v2": _large("conv_silu", release3=False),
    "yolov6n_base": Yolov6Config(0.33, 0.25, True, csp_pooling=True, mode="conv_relu"),
    "yolov6s_base": Yolov6Config(0.70, 0.50, True, True, csp_expansion=1 / 2, mode="conv_relu"),
    "yolov6m_base": Yolov6Config(
        0.80, 0.75, True, csp_expansion=1 / 2, mode="conv_relu", reg_max=_REG_MAX
    ),
    "yolov6l_base": Yolov6Config(
        1.0, 1.0, True, csp_expansion=1 / 2, mode="conv_relu", reg_max=_REG_MAX
    ),
}
