"""YOLOv6-N, -T, -S, -M, -L of releases 2.0 and 3.0, the base models, and the demo detector.

Written from the papers YOLOv6 (https://arxiv.org/abs/2209.02976) and YOLOv6 v3.0
(https://arxiv.org/abs/2301.05586). Module names are those of the official state dicts. What differs
from the official code: the auxiliary branches that only training uses (anchor-aided head,
distillation head) do not exist here, and the outputs are one map per stride, undecoded.
"""

from __future__ import annotations

import torch
from torch import nn

from reptrt.models.yolov6.config import (
    BACKBONE_CHANNELS,
    BACKBONE_REPEATS,
    CONFIGS,
    NECK_CHANNELS,
    Yolov6Config,
)
from reptrt.models.yolov6.head import EffiDeHead
from reptrt.models.yolov6.neck import Levels, RepBiPan, RepPan

STRIDES = (8, 16, 32)


def build_yolov6(name: str, num_classes: int = 80) -> Yolov6:
    """Build the network of one of the zoo's names, a key of `CONFIGS`, with random weights."""
    return Yolov6(CONFIGS[name], num_classes)


def yolov6n_demo(num_classes: int = 8) -> Yolov6:
    """YOLOv6-N's layout (release 3.0) at half its width: 0.125 instead of 0.25.

    Small enough to train on a CPU, on the synthetic scenes of `reptrt.models.demo.scenes`. The checkpoint
    that ships has mAP50-95 0.824 on the 500 scenes of `EVALUATION`, at 192x192.
    """
    return build_yolov6("yolov6n_demo", num_classes)


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
        head_channels = [config.channels(NECK_CHANNELS[index]) for index in (2, 3, 5)]
        self.detect = EffiDeHead(head_channels, num_classes, config.reg_max)

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
    """Backbone: a stride-2 block and four stages; CSPBep where the stages are BepC3."""

    def __init__(self, config: Yolov6Config) -> None:
        super().__init__()
        widths = [config.channels(base) for base in BACKBONE_CHANNELS]
        self.stem = config.block(3, widths[0], 2)
        self.ERBlock_2 = _stage(config, 1)
        self.ERBlock_3 = _stage(config, 2)
        self.ERBlock_4 = _stage(config, 3)
        self.ERBlock_5 = _stage(config, 4)
        self.ERBlock_5.append(config.pooling(widths[4]))

    def forward(self, images: torch.Tensor) -> Levels:
        """Return the features of strides 4, 8, 16 and 32."""
        c2 = self.ERBlock_2(self.stem(images))
        c3 = self.ERBlock_3(c2)
        c4 = self.ERBlock_4(c3)
        return c2, c3, c4, self.ERBlock_5(c4)


def _stage(config: Yolov6Config, index: int) -> nn.Sequential:
    before, after = (config.channels(BACKBONE_CHANNELS[i]) for i in (index - 1, index))
    return nn.Sequential(
        config.block(before, after, 2), config.stage(after, after, BACKBONE_REPEATS[index])
    )
