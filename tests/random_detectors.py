"""YOLOv6 detectors with seeded random weights that behave like trained ones: BN statistics from data."""

from __future__ import annotations

import torch
from torch import nn

from reptrt.models.yolov6.network import Yolov6


@torch.no_grad()
def randomize_detector(
    model: Yolov6, seed: int = 0, image_size: tuple[int, int] = (64, 64), num_images: int = 4
) -> Yolov6:
    """Give `model` random scales, shifts and predictions, and statistics of random images.

    Its BatchNorms average over `num_images` noise images of `image_size` in one pass in train mode, so
    that activations keep a usual size through all layers. Returns `model`, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) * 0.2)
        norm.momentum = None  # plain average
        norm.reset_running_stats()
    for layers, spread in ((model.detect.cls_preds, 4.0), (model.detect.reg_preds, 1.0)):
        for layer in layers:
            weight = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(weight * spread / weight[0].numel() ** 0.5)
    model.train()(torch.rand(num_images, 3, *image_size, generator=generator))
    for norm in norms:
        norm.momentum = 0.03
    return model.eval()


def random_images(
    count: int, image_size: tuple[int, int] = (64, 64), seed: int = 1
) -> torch.Tensor:
    """Return noise images `[count, 3, h, w]` on the 0-1 scale."""
    return torch.rand(count, 3, *image_size, generator=torch.Generator().manual_seed(seed))
