"""YOLOv6's necks: Rep-PAN of release 2.0 and RepBi-PAN of release 3.0, with either kind of stage.

Written from the papers YOLOv6 (https://arxiv.org/abs/2209.02976, section 2.1) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586, section 2.1). With BepC3 stages they are CSPRepPAN and CSPRepBi-PAN.
Convolutions between the stages have a ReLU in every mode.
"""

from __future__ import annotations

import torch
from torch import nn

from reptrt.models.yolov6.blocks import BiFusion, ConvBnAct, Upsample
from reptrt.models.yolov6.config import BACKBONE_CHANNELS, NECK_CHANNELS, NECK_REPEATS, Yolov6Config

Levels = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class RepBiPan(nn.Module):
    """Release 3.0's neck: its top-down path fuses three levels at a time."""

    def __init__(self, config: Yolov6Config) -> None:
        super().__init__()
        c2, c3, c4, c5 = (config.channels(base) for base in BACKBONE_CHANNELS[1:])
        n0, n1, n2, n3, n4, n5 = (config.channels(base) for base in NECK_CHANNELS)
        self.reduce_layer0 = ConvBnAct(c5, n0)
        self.Bifusion0 = BiFusion(c4, c3, n0)
        self.Rep_p4 = config.stage(n0, n0, NECK_REPEATS)
        self.reduce_layer1 = ConvBnAct(n0, n1)
        self.Bifusion1 = BiFusion(c3, c2, n1)
        self.Rep_p3 = config.stage(n1, n1, NECK_REPEATS)
        self.downsample2 = ConvBnAct(n1, n2, 3, 2)
        self.Rep_n3 = config.stage(n1 + n2, n3, NECK_REPEATS)
        self.downsample1 = ConvBnAct(n3, n4, 3, 2)
        self.Rep_n4 = config.stage(n0 + n4, n5, NECK_REPEATS)

    def forward(self, features: Levels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map the backbone's four levels to the head's three, strides 8, 16 and 32."""
        c2, c3, c4, c5 = features
        deep = self.reduce_layer0(c5)
        middle = self.reduce_layer1(self.Rep_p4(self.Bifusion0(deep, c4, c3)))
        p3 = self.Rep_p3(self.Bifusion1(middle, c3, c2))
        p4 = self.Rep_n3(torch.cat((self.downsample2(p3), middle), dim=1))
        p5 = self.Rep_n4(torch.cat((self.downsample1(p4), deep), dim=1))
        return p3, p4, p5


class RepPan(nn.Module):
    """Release 2.0's neck, with learned upsampling."""

    def __init__(self, config: Yolov6Config) -> None:
        super().__init__()
        c3, c4, c5 = (config.channels(base) for base in BACKBONE_CHANNELS[2:])
        n0, n1, n2, n3, n4, n5 = (config.channels(base) for base in NECK_CHANNELS)
        self.Rep_p4 = config.stage(c4 + n0, n0, NECK_REPEATS)
        self.Rep_p3 = config.stage(c3 + n1, n1, NECK_REPEATS)
        self.Rep_n3 = config.stage(n1 + n2, n3, NECK_REPEATS)
        self.Rep_n4 = config.stage(n0 + n4, n5, NECK_REPEATS)
        self.reduce_layer0 = ConvBnAct(c5, n0)
        self.upsample0 = Upsample(n0)
        self.reduce_layer1 = ConvBnAct(n0, n1)
        self.upsample1 = Upsample(n1)
        self.downsample2 = ConvBnAct(n1, n2, 3, 2)
        self.downsample1 = ConvBnAct(n3, n4, 3, 2)

    def forward(self, features: Levels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map the backbone's levels of strides 8, 16, 32 to the head's; stride 4 is not used."""
        _, c3, c4, c5 = features
        deep = self.reduce_layer0(c5)
        middle = self.reduce_layer1(self.Rep_p4(torch.cat((self.upsample0(deep), c4), dim=1)))
        p3 = self.Rep_p3(torch.cat((self.upsample1(middle), c3), dim=1))
        p4 = self.Rep_n3(torch.cat((self.downsample2(p3), middle), dim=1))
        p5 = self.Rep_n4(torch.cat((self.downsample1(p4), deep), dim=1))
        return p3, p4, p5
