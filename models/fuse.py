"""Train form to deploy form: every multi-branch block becomes the one convolution it equals.

The arithmetic of a block is the block's own method (timm's, the user's, YOLOv6's here). This file
decides how to call it. Against `timm.utils.reparameterize_model` it adds: the root module itself
may be a block, a block in two places stays one, a `fuse()` that returns nothing does not delete
the block, one that is fused already stays as it is, and the fused kernel is computed in float64,
so that only one rounding separates the two forms. `reptrt.models.fuse_check` tells whether they are one
function.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from reptrt.engines.foreign.text import one_line

logger = logging.getLogger(__name__)

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")


class ReparameterizationError(ValueError):
    """A block cannot be brought into deploy form, or computes something else there."""

    exit_code = 2


@torch.no_grad()
def reparameterize(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in deploy form and eval mode; `module` itself does not change.

    A block is recognised by the method that fuses it: `fuse()`, `reparameterize()` or
    `switch_to_deploy()`, looked for in this order, as timm does. A module without such blocks
    comes back as an equal copy. A block that insists on the type it has is fused in that type.

    Raises:
        ReparameterizationError: the method of a block raises; the line names the block.
    """
    if not has_reparameterizable_blocks(module):
        return copy.deepcopy(module).eval()
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    try:
        return _reparameterize_in(torch.float64, module).to(dtype)
    except ReparameterizationError:
        return _reparameterize_in(dtype, module)


def has_reparameterizable_blocks(module: nn.Module) -> bool:
    """Whether `module` is built of blocks that fuse, in train form or fused already."""
    return any(fusing_method(block) is not None for block in module.modules())


def fusing_method(block: nn.Module) -> str | None:
    """Name of the method that fuses `block`; None where it is no re-parameterizable block.

    A child called `fuse` is none, nor is a method that needs an argument: it does something else.
    """
    return next((name for name in _METHODS if _is_called_alone(getattr(block, name, None))), None)


def _is_called_alone(method: object) -> bool:
    if not inspect.isroutine(method):
        return False
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _reparameterize_in(dtype: torch.dtype, module: nn.Module) -> nn.Module:
    root = nn.Sequential(copy.deepcopy(module).eval().to(dtype))
    with _default_dtype(dtype):
        _reparameterize_children(root, {}, None)
    return root[0].eval()


def _reparameterize_children(
    parent: nn.Module, done: dict[nn.Module, nn.Module], path: str | None
) -> None:
    """Fuse every block below `parent`; a `path` of None is that of the root's parent."""
    for name, child in list(parent._modules.items()):  # named_children() names a shared child once
        if child is None:
            continue
        if child not in done:
            own_path = "" if path is None else f"{path}.{name}".lstrip(".")
            deployed = _reparameterize_block(child, own_path)
            done[child] = done[deployed] = deployed
            _reparameterize_children(deployed, done, own_path)
        if done[child] is not child:
            setattr(parent, name, done[child])


def _reparameterize_block(block: nn.Module, path: str) -> nn.Module:
    method = fusing_method(block)
    if method is None:
        return block
    try:
        fused = getattr(block, method)()
    except Exception as error:
        if isinstance(error, AttributeError) and not _holds_norm(block):
            logger.debug("%s is fused already: %s", path, error)
            return block
        raise block_error(
            block, path, f"raises {type(error).__name__}: {one_line(error)}"
        ) from error
    deployed = fused if isinstance(fused, nn.Module) else block
    # The identity kernel that timm's blocks cache is as large as the weight and not needed again.
    deployed.__dict__.pop("id_tensor", None)
    return deployed


def block_error(block: nn.Module, path: str, fault: str) -> ReparameterizationError:
    """What to raise where the method that fuses `block` does something wrong."""
    return ReparameterizationError(
        f"{path or 'the network'}: {fusing_method(block)}() of {type(block).__name__} {fault};"
        " correct the method, or rename it to have the branches quantized one by one"
    )


def _holds_norm(block: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._NormBase) for part in block.modules())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New modules have this type: some blocks copy the fused kernel into a fresh module."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
