"""YOLOv6-N, -T and -S, and the demo detector: EfficientRep, Rep-PAN or RepBi-PAN, EffiDeHead.

Written from the papers YOLOv6 (https://arxiv.org/abs/2209.02976, "release 2.0" here) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586, "release 3.0"). Module names are those of the official state dicts.
Anchor-free, without distribution focal loss. What differs from the official code: the auxiliary
branches that only training uses (anchor-aided head, distillation head) do not exist here, and the
outputs are one map per stride, undecoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from models.yolov6_blocks import (
    BiFusion,
    ConvBnAct,
    RepBlock,
    RepVggBlock,
    SimCspSppf,
    SimSppf,
    Upsample,
)

STRIDES = (8, 16, 32)
_BACKBONE_CHANNELS = (64, 128, 256, 512, 1024)
_BACKBONE_REPEATS = (1, 6, 12, 18, 6)
_NECK_CHANNELS = (256, 128, 128, 256, 256, 512)
_NECK_REPEATS = 12
_PRIOR = 0.01


@dataclass(frozen=True)
class Yolov6Config:
    """Size of one YOLOv6 of the single-path family.

    Attributes:
        depth: Factor on the number of RepVGG blocks per stage.
        width: Factor on the channel counts, which are rounded up to multiples of 8.
        bidirectional: Release 3.0 (RepBi-PAN, SimCSPSPPF, stride-4 features fused into the neck)
            instead of release 2.0 (Rep-PAN, SimSPPF).
    """

    depth: float
    width: float
    bidirectional: bool

    def channels(self, base: int) -> int:
        """Scale a channel count of the full-width network."""
        return math.ceil(base * self.width / 8) * 8

    def repeats(self, base: int) -> int:
        """Scale a block count of the full-depth network."""
        return max(round(base * self.depth), 1) if base > 1 else base


def yolov6n(num_classes: int = 80) -> Yolov6:
    """YOLOv6-N of release 3.0; deploy form 4.7 M parameters, 11.4 GFLOPs at 640x640."""
    return Yolov6(Yolov6Config(depth=0.33, width=0.25, bidirectional=True), num_classes)


def yolov6t(num_classes: int = 80) -> Yolov6:
    """YOLOv6-T of release 2.0; deploy form 9.7 M parameters, 24.9 GFLOPs at 640x640.

    Tables that say 15.0 M and 36.7 GFLOPs describe the tiny model of release 1.0, which had other
    factors (depth 0.25, width 0.50): see issue 659 of meituan/YOLOv6.
    """
    return Yolov6(Yolov6Config(depth=0.33, width=0.375, bidirectional=False), num_classes)


def yolov6s(num_classes: int = 80) -> Yolov6:
    """YOLOv6-S of release 3.0; deploy form 18.5 M parameters, 45.3 GFLOPs at 640x640."""
    return Yolov6(Yolov6Config(depth=0.33, width=0.50, bidirectional=True), num_classes)


def yolov6n_demo(num_classes: int = 8) -> Yolov6:
    """YOLOv6-N's layout (release 3.0) at half its width: 0.125 instead of 0.25.

    Small enough to train on a CPU, on the synthetic scenes of `models.demo.scenes`. The checkpoint
    that ships has mAP50-95 0.824 on the 500 scenes of `EVALUATION`, at 192x192.
    """
    return Yolov6(Yolov6Config(depth=0.33, width=0.125, bidirectional=True), num_classes)


class Yolov6(nn.Module):
    """A YOLOv6 detector in train form; call `reparameterize()` of its RepVGG blocks for deploy form.

    Attributes:
        num_classes: Number of classes.
        strides: Pixels per cell of the three output maps.
    """

    def __init__(self, config: Yolov6Config, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = STRIDES
        self.backbone = EfficientRep(config)
        self.neck: RepBiPan | RepPan = RepBiPan(config) if config.bidirectional else RepPan(config)
        head_channels = [config.channels(_NECK_CHANNELS[index]) for index in (2, 3, 5)]
        self.detect = EffiDeHead(head_channels, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detect on normalised RGB images.

        Args:
            images: `[n, 3, h, w]`, h and w multiples of 32.

        Returns:
            One map `[n, num_classes + 4, h / stride, w / stride]` per stride: the sigmoid scores of
            the classes, then the distances left, top, right and bottom, in cells, from the cell's
            centre `((x + 0.5) * stride, (y + 0.5) * stride)` to the box.
        """
        maps = self.forward_raw(images)
        return tuple(torch.cat((logits.sigmoid(), box), dim=1) for logits, box in maps)

    def forward_raw(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return, per stride, class logits `[n, num_classes, h, w]` and distances `[n, 4, h, w]`."""
        maps: list[tuple[torch.Tensor, torch.Tensor]] = self.detect(
            self.neck(self.backbone(images))
        )
        return maps


class EfficientRep(nn.Module):
    """Backbone: a stride-2 RepVGG stem and four stages of RepVGG blocks."""

    def __init__(self, config: Yolov6Config) -> None:
        super().__init__()
        widths = [config.channels(base) for base in _BACKBONE_CHANNELS]
        repeats = [config.repeats(base) for base in _BACKBONE_REPEATS]
        self.stem = RepVggBlock(3, widths[0], stride=2)
        self.ERBlock_2 = _stage(widths[0], widths[1], repeats[1])
        self.ERBlock_3 = _stage(widths[1], widths[2], repeats[2])
        self.ERBlock_4 = _stage(widths[2], widths[3], repeats[3])
        self.ERBlock_5 = _stage(widths[3], widths[4], repeats[4])
        pooling = SimCspSppf if config.bidirectional else SimSppf
        self.ERBlock_5.append(pooling(widths[4], widths[4]))

    def forward(
        self, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the features of strides 4, 8, 16 and 32."""
        c2 = self.ERBlock_2(self.stem(images))
        c3 = self.ERBlock_3(c2)
        c4 = self.ERBlock_4(c3)
        return c2, c3, c4, self.ERBlock_5(c4)


def _stage(in_channels: int, out_channels: int, repeats: int) -> nn.Sequential:
    return nn.Sequential(
        RepVggBlock(in_channels, out_channels, stride=2),
        RepBlock(out_channels, out_channels, repeats),
    )


class RepBiPan(nn.Module):
    """Release 3.0's neck: PAN of RepVGG blocks whose top-down path fuses three levels at a time."""

    def __init__(self, config: Yolov6Config) -> None:
        super().__init__()
        c2, c3, c4, c5 = (config.channels(base) for base in _BACKBONE_CHANNELS[1:])
        n0, n1, n2, n3, n4, n5 = (config.channels(base) for base in _NECK_CHANNELS)
        repeats = config.repeats(_NECK_REPEATS)
        self.reduce_layer0 = ConvBnAct(c5, n0)
        self.Bifusion0 = BiFusion(c4, c3, n0)
        self.Rep_p4 = RepBlock(n0, n0, repeats)
        self.reduce_layer1 = ConvBnAct(n0, n1)
        self.Bifusion1 = BiFusion(c3, c2, n1)
        self.Rep_p3 = RepBlock(n1, n1, repeats)
        self.downsample2 = ConvBnAct(n1, n2, 3, 2)
        self.Rep_n3 = RepBlock(n1 + n2, n3, repeats)
        self.downsample1 = ConvBnAct(n3, n4, 3, 2)
        self.Rep_n4 = RepBlock(n0 + n4, n5, repeats)

    def forward(
        self, features: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map the backbone's four levels to the head's three, strides 8, 16 and 32."""
        c2, c3, c4, c5 = features
        deep = self.reduce_layer0(c5)
        middle = self.reduce_layer1(self.Rep_p4(self.Bifusion0(deep, c4, c3)))
        p3 = self.Rep_p3(self.Bifusion1(middle, c3, c2))
        p4 = self.Rep_n3(torch.cat((self.downsample2(p3), middle), dim=1))
        p5 = self.Rep_n4(torch.cat((self.downsample1(p4), deep), dim=1))
        return p3, p4, p5


class RepPan(nn.Module):
    """Release 2.0's neck: PAN of RepVGG blocks with learned upsampling."""

    def __init__(self, config: Yolov6Config) -> None:
        super().__init__()
        c3, c4, c5 = (config.channels(base) for base in _BACKBONE_CHANNELS[2:])
        n0, n1, n2, n3, n4, n5 = (config.channels(base) for base in _NECK_CHANNELS)
        repeats = config.repeats(_NECK_REPEATS)
        self.Rep_p4 = RepBlock(c4 + n0, n0, repeats)
        self.Rep_p3 = RepBlock(c3 + n1, n1, repeats)
        self.Rep_n3 = RepBlock(n1 + n2, n3, repeats)
        self.Rep_n4 = RepBlock(n0 + n4, n5, repeats)
        self.reduce_layer0 = ConvBnAct(c5, n0)
        self.upsample0 = Upsample(n0)
        self.reduce_layer1 = ConvBnAct(n0, n1)
        self.upsample1 = Upsample(n1)
        self.downsample2 = ConvBnAct(n1, n2, 3, 2)
        self.downsample1 = ConvBnAct(n3, n4, 3, 2)

    def forward(
        self, features: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map the backbone's levels of strides 8, 16, 32 to the head's; stride 4 is not used."""
        _, c3, c4, c5 = features
        deep = self.reduce_layer0(c5)
        middle = self.reduce_layer1(self.Rep_p4(torch.cat((self.upsample0(deep), c4), dim=1)))
        p3 = self.Rep_p3(torch.cat((self.upsample1(middle), c3), dim=1))
        p4 = self.Rep_n3(torch.cat((self.downsample2(p3), middle), dim=1))
        p5 = self.Rep_n4(torch.cat((self.downsample1(p4), deep), dim=1))
        return p3, p4, p5


class EffiDeHead(nn.Module):
    """Decoupled head: one shared stem per level, then one convolution for each of the two tasks."""

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList(ConvBnAct(c, c, act=nn.SiLU) for c in channels)
        self.cls_convs = nn.ModuleList(ConvBnAct(c, c, 3, act=nn.SiLU) for c in channels)
        self.reg_convs = nn.ModuleList(ConvBnAct(c, c, 3, act=nn.SiLU) for c in channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in channels)
        self._initialize_predictions()

    def forward(
        self, features: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return, per level, class logits `[n, num_classes, h, w]` and distances `[n, 4, h, w]`."""
        maps = []
        for index, feature in enumerate(features):
            x = self.stems[index](feature)
            logits = self.cls_preds[index](self.cls_convs[index](x))
            maps.append((logits, self.reg_preds[index](self.reg_convs[index](x))))
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
