"""timm's families of re-parameterizable networks, as published and small, with trained-like values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from timm.models.byobnet import ByobNet, _mobileone_bcfg, model_cfgs
from timm.models.repghost import RepGhostNet
from torch import nn

PUBLISHED = {
    "repvgg_a0": 32,
    "mobileone_s0": 32,
    "fastvit_t8": 64,
    "fastvit_sa12": 64,
    "fastvit_mci0": 64,
    "repvit_m0_9": 32,
    "repvit_m1": 32,
    "repghostnet_050": 32,
    "ghostnetv3_050": 64,
    "lcnetv2_base": 32,
    "iformer_t": 64,
    "shvit_s1": 64,
    "nextvit_small": 32,
    "efficientvim_m1": 64,
    "efficientvit_m0": 64,
    "tiny_vit_5m_224": 64,
    "levit_128s": 64,
    "levit_conv_128s": 64,
}
"""Architecture -> side of the images. FastViT's `mci` are MobileCLIP's image towers."""

SIZED = ("efficientvit_m0", "levit_128s", "levit_conv_128s")
"""Built for one image size."""


def published(name: str, num_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": PUBLISHED[name]} if name in SIZED else {}
    return trained(timm.create_model(name, num_classes=num_classes, **size))


def _repvgg() -> nn.Module:
    cfg = model_cfgs["repvgg_a0"]
    blocks = [replace(block, d=min(block.d, 2), c=block.c // 2) for block in cfg.blocks]
    return ByobNet(replace(cfg, blocks=blocks), num_classes=5)


def _mobileone() -> nn.Module:
    blocks = _mobileone_bcfg(
        (1, 2, 2, 1), (0.5, 0.5, 0.5, 0.5), se_blocks=(0, 0, 1, 0), num_conv_branches=2
    )
    cfg = replace(model_cfgs["mobileone_s0"], blocks=blocks, stem_chs=32)
    return ByobNet(cfg, num_classes=5)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


_FASTVIT = {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)}

SMALL: dict[str, Callable[[], nn.Module]] = {
    "repvgg": _repvgg,
    "mobileone": _mobileone,
    "fastvit": _timm("fastvit_sa12", **_FASTVIT),
    "mobileclip": _timm("fastvit_mci0", **_FASTVIT),
    "repvit": _timm("repvit_m0_9", depth=(1, 1, 1, 1), embed_dim=(16, 24, 32, 48)),
    "repghost": lambda: RepGhostNet(
        [[[3, 8, 16, 0, 1]], [[5, 24, 24, 0.25, 2]]],
        num_classes=5,
        width=0.5,
    ),
}
"""Family -> a network of all kinds of its blocks, few and narrow, for images of 64 x 64."""

SIDE = 64


def small(family: str) -> nn.Module:
    torch.manual_seed(0)
    return trained(SMALL[family]())


@torch.no_grad()
def trained(module: nn.Module) -> nn.Module:
    """Give norms, layer scales, gates and biases values that no fresh network has."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.5, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
    for name, parameter in module.named_parameters():
        last = name.rpartition(".")[2]
        if (parameter.ndim == 1 and last == "weight") or last in ("gamma", "alpha"):
            parameter.uniform_(0.3, 1.5, generator=generator)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.3, generator=generator)
    return module.eval()
