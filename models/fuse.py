"""Train form to deploy form: every multi-branch block becomes the one convolution it equals.

The arithmetic of a block is the block's own method (timm's RepVGG and MobileOne, YOLOv6 here). This
file decides how to call it. Against `timm.utils.reparameterize_model` it adds: the root module
itself may be a block, a `fuse()` that returns nothing does not delete the block, and the fused
kernel is computed in float64, so that only one rounding separates the two forms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@torch.no_grad()
def reparameterize(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in deploy form and eval mode; `module` itself does not change.

    A block is recognised by the method that fuses it: `fuse()`, `reparameterize()` or
    `switch_to_deploy()`, looked for in this order, as timm does. A module without such blocks
    comes back as an equal copy.
    """
    root = nn.Sequential(copy.deepcopy(module).eval())
    _reparameterize_children(root)
    return root[0].eval()


def has_reparameterizable_blocks(module: nn.Module) -> bool:
    """Whether `module` is built of blocks that fuse, in train form or fused already."""
    return any(fusing_method(block) is not None for block in module.modules())


def _reparameterize_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        deployed = _reparameterize_block(child)
        setattr(parent, name, deployed)
        _reparameterize_children(deployed)


def _reparameterize_block(block: nn.Module) -> nn.Module:
    method = fusing_method(block)
    if method is None:
        return block
    dtype = next((p.dtype for p in block.parameters() if p.is_floating_point()), torch.float32)
    with _float64_by_default():
        block.double()
        fused = getattr(block, method)()
    deployed = fused if isinstance(fused, nn.Module) else block
    # The identity kernel that timm's blocks cache is as large as the weight and not needed again.
    deployed.__dict__.pop("id_tensor", None)
    return deployed.to(dtype)


def fusing_method(block: nn.Module) -> str | None:
    """Name of the method that fuses `block`; None where it is no re-parameterizable block."""
    names = ("fuse", "reparameterize", "switch_to_deploy")
    return next((name for name in names if callable(getattr(block, name, None))), None)


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """New modules are float64: some blocks of timm copy the fused kernel into a fresh module."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
