"""Networks of every kind that the project serves, small enough to export in a second."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache

import torch
from timm.layers import SqueezeExcite
from timm.models.byobnet import MobileOneBlock
from timm.models.resnet import BasicBlock
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import fx, nn

from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, insert_quantizers
from reptrt.models.expand_attention import expand_attention
from reptrt.models.fuse import reparameterize
from reptrt.models.graph import trace
from reptrt.models.yolov6.blocks import RepVggBlock, Upsample
from reptrt.models.yolov6.pooling import SimSppf

SIZE = 16
torch.set_num_threads(1)  # on tensors this small a second thread only waits


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def plain() -> nn.Module:
    """Conv + BN + ReLU, a pooling, a grouped convolution with SiLU, dropout."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, groups=2), nn.SiLU(), nn.Dropout(0.5)),
        *_head(16),
    )


def reparameterized() -> nn.Module:
    """Train-form RepVGG and depthwise + pointwise MobileOne blocks."""
    return nn.Sequential(
        RepVggBlock(3, 8, stride=2),
        RepVggBlock(8, 8),
        MobileOneBlock(8, 8, group_size=1, num_conv_branches=2),
        MobileOneBlock(8, 16, kernel_size=1, num_conv_branches=2),
        *_head(16),
    )


class Detector(nn.Module):
    """A pooling pyramid, a learned and a nearest upsampling, concats, three maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = RepVggBlock(3, 8, stride=2)
        self.down = RepVggBlock(8, 16, stride=2)
        self.pool = SimSppf(16, 16)
        self.lateral = nn.Conv2d(8, 8, 1)
        self.reduce = nn.Conv2d(16, 8, 1)
        self.up = Upsample(8)
        self.mix = RepVggBlock(24, 8)
        self.heads = nn.ModuleList([nn.Conv2d(8, 7, 1), nn.Conv2d(16, 7, 1)])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shallow = self.stem(images)
        deep = self.pool(self.down(shallow))
        reduced = self.reduce(deep)
        nearest = nn.functional.interpolate(reduced, scale_factor=2.0, mode="nearest")
        mixed = self.mix(torch.cat([self.lateral(shallow), self.up(reduced), nearest], dim=1))
        return self.heads[0](mixed), self.heads[1](deep)


def residual() -> nn.Module:
    """Basic blocks, the first with a strided shortcut, around a squeeze-and-excitation."""
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        BasicBlock(8, 16, stride=2, downsample=shortcut),
        SqueezeExcite(16),
        BasicBlock(16, 16),
        *_head(16),
    )


def vit() -> nn.Module:
    """One block of a ViT on 16 patches."""
    return VisionTransformer(
        img_size=SIZE, patch_size=4, embed_dim=32, depth=1, num_heads=2, num_classes=10
    )


def swin() -> nn.Module:
    """A plain and a shifted window block."""
    return SwinTransformer(
        img_size=SIZE,
        patch_size=2,
        embed_dim=16,
        depths=(2,),
        num_heads=(2,),
        window_size=4,
        num_classes=10,
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "reparameterized": reparameterized,
    "detector": Detector,
    "residual": residual,
    "vit": vit,
    "swin": swin,
}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and BatchNorm statistics that no fresh network has; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 50
        parameter.data.normal_(0, fan_in**-0.5, generator=generator)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.LayerNorm)) and norm.weight is not None:
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.5, generator=generator)
            norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return module.eval()


def smooth_images(count: int, seed: int, size: int = SIZE) -> torch.Tensor:
    """[count, 3, size, size] images with structure at several scales, around unit variance."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    for side in (1, 2, 4, size):
        noise = torch.randn(count, 3, side, side, generator=generator)
        images += 0.6 * nn.functional.interpolate(noise, (size, size), mode="nearest")
    return images


@cache
def _trace_once(name: str, batch_size: int | None) -> fx.GraphModule:
    return trace(reparameterize(randomize(NETWORKS[name]())), (SIZE, SIZE), batch_size=batch_size)


def traced(name: str, batch_size: int | None = None) -> fx.GraphModule:
    """Network `name` of `NETWORKS` in deploy form, recorded; the caller may change it."""
    return copy.deepcopy(_trace_once(name, batch_size))


def quantized(
    graph_module: fx.GraphModule,
    bits: tuple[int, int] = (8, 8),
    keep_float: Sequence[str] = (),
    softmax: Softmax = "float",
) -> QuantizedModel:
    """Uncalibrated quantizers on a recorded network; `bits` of weights, of activations."""
    if softmax != "float":
        expand_attention(graph_module)
    placement = place_quantizers(graph_module.graph, keep_float, softmax=softmax)
    return insert_quantizers(graph_module, placement, weight_bits=bits[0], activation_bits=bits[1])


def calibrated(
    name: str,
    bits: tuple[int, int] = (8, 8),
    batch_size: int | None = None,
    softmax: Softmax = "float",
) -> QuantizedModel:
    """Network `name` of `NETWORKS` with min-max scales and the biases that go with them."""
    model = quantized(traced(name, batch_size), bits, softmax=softmax)
    MinMaxCalibrator().calibrate(model, [smooth_images(batch_size or 64, seed=1)])
    round_biases(model)
    return model
