"""Small transformers with the outlier channels of real ones, for what reparameterizes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import fx, nn

from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.models.graph import trace
from tests.tiny_networks import quantized, randomize


def _vit(size: tuple[int, int]) -> nn.Module:
    return VisionTransformer(
        img_size=size, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10
    )


def _swin(size: tuple[int, int]) -> nn.Module:
    return SwinTransformer(
        img_size=size,
        patch_size=4,
        window_size=7,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=10,
    )


TRANSFORMERS: dict[str, tuple[Callable[[tuple[int, int]], nn.Module], tuple[int, int]]] = {
    "vit": (_vit, (32, 32)),
    "vit-wide": (_vit, (16, 40)),
    "swin": (_swin, (56, 56)),
    "swin-padded": (_swin, (60, 56)),
}
"""Name -> (class, image size). Windows of 7 do not divide the 15 rows of "swin-padded"."""

READERS = {"norm1": "attn.qkv", "norm2": "mlp.fc1", "norm": "reduction"}
"""LayerNorm of a block -> linear that reads it."""


@torch.no_grad()
def with_outliers(module: nn.Module) -> nn.Module:
    """Random weights; every seventh channel behind a LayerNorm is large and off-centre.

    It is 10 to 30 times as large as others, its readers weigh it a tenth.
    """
    generator = torch.Generator().manual_seed(1)
    layers = dict(randomize(module).named_modules())
    for name, norm in layers.items():
        if not isinstance(norm, nn.LayerNorm):
            continue
        factor = 10 + 20 * torch.rand(len(norm.weight[::7]), generator=generator)
        norm.weight[::7] *= factor
        norm.bias.normal_(0, 0.5, generator=generator)
        norm.bias[::7] *= 2 * factor
        parent, _, own = name.rpartition(".")
        reader = layers.get(f"{parent}.{READERS.get(own)}")
        if isinstance(reader, nn.Linear):
            reader.weight[:, ::7] /= 10
    return module


@cache
def float_network(name: str) -> fx.GraphModule:
    """Traced network `name`; shared, so copy it before changing it."""
    make, size = TRANSFORMERS[name]
    return trace(with_outliers(make(size)), size)


def transformer(
    name: str, bits: tuple[int, int] = (8, 8), softmax: Softmax = "float"
) -> QuantizedModel:
    """Network `name` of `TRANSFORMERS` with uncalibrated quantizers."""
    return quantized(copy.deepcopy(float_network(name)), bits, softmax=softmax)


def images_for(name: str, count: int, seed: int = 1) -> torch.Tensor:
    """[count, 3, H, W] images with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    height, width = TRANSFORMERS[name][1]
    images = torch.zeros(count, 3, height, width)
    for side in (1, 2, 4, 8):
        noise = torch.randn(count, 3, side, side, generator=generator)
        images += 0.6 * nn.functional.interpolate(noise, (height, width), mode="nearest")
    return images


def float_output(model: QuantizedModel, images: torch.Tensor) -> torch.Tensor:
    """Output of the float network in float64; `model` keeps its type."""
    graph_module = copy.deepcopy(model.graph_module).double()
    for module in graph_module.modules():
        if hasattr(module, "enabled"):
            module.enabled = False
    with torch.no_grad():
        result = graph_module(images.double())
    output = result[0] if isinstance(result, tuple) else result
    assert isinstance(output, torch.Tensor)
    return output
