"""QPRep: a re-parameterized block as one convolution and one affine map per output channel.

RepAPQ, "Towards Accurate Post-training Quantization for Reparameterized Models"
(https://arxiv.org/abs/2402.16121): y = gain * (K' * x + B') + shift, where K' is quantized and gain
and shift are learned. At the start gain * K' = K and gain * B' + shift = B, so the float function
is that of the merged convolution (K, B). At the end the affine map folds into the weight scale,
the signs of the codes and the bias, so nothing of it reaches an engine.

Reconstructed, for the paper does not say how gain and shift start: the three `INITIALISATIONS`. With
one weight scale per output channel, computed from K', all three have the same integer weights (up
to a sign) and the same quantized function; they differ in how the optimisation is conditioned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from reptrt.calibrators.quantized.channel_affine import ChannelAffine, _guarded
from reptrt.calibrators.quantized.fake_quant import broadcast_scale
from reptrt.models.branches.merge import MergedLayer
from reptrt.models.fuse import fusing_method

logger = logging.getLogger(__name__)

INITIALISATIONS = ("identity", "dense_branch", "statistics")
"""`ChannelAffine.identity`, `protect_reparameterization`, `ChannelAffine.from_statistics`."""


BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm
Branch = Sequence[nn.Conv2d | BatchNorm]


@torch.no_grad()
def protect_reparameterization(
    train_form: nn.Module, deploy_form: nn.Module
) -> dict[str, ChannelAffine]:
    """Find the dense branch's BatchNorm of every convolution that re-parameterization made.

    The dense branch is the one with the largest kernel, the first of equals. A channel whose gamma
    is nearly 0 there gets gain 1, shift 0.

    Args:
        train_form: network in train form; only its BatchNorm statistics are read.
        deploy_form: `reptrt.models.fuse.reparameterize(train_form)`.

    Returns:
        Layer name in the deploy form -> gain gamma / sigma, shift beta - mu * gamma / sigma, in
        the dtype of the layer. No entry where no branch ends in a BatchNorm, which the log says,
        or where the train form is fused already.
    """
    before = dict(train_form.named_modules(remove_duplicate=False))
    affines: dict[str, ChannelAffine] = {}
    without: list[str] = []
    for name, merged in deploy_form.named_modules(remove_duplicate=False):
        if not isinstance(merged, nn.Conv2d) or _is_unchanged(before.get(name), merged):
            continue
        block = _enclosing_block(name, before)
        norm = None if block is None else _dense_norm(block, merged)
        if norm is not None:
            affine = _norm_affine(norm)
            affines[name] = ChannelAffine(
                affine.gain.to(merged.weight), affine.shift.to(merged.weight)
            )
        elif block is not None:
            without.append(name)
    if without:
        logger.info("merged from no branch with a BatchNorm: %s", ", ".join(without))
    return affines


def protect_merged(merged: Sequence[MergedLayer]) -> dict[str, ChannelAffine]:
    """The dense branch's BatchNorm of every layer that `reptrt.models.graph.trace` merged."""
    affines: dict[str, ChannelAffine] = {}
    for layer in merged:
        if layer.gain is not None and layer.shift is not None:
            affine = _guarded(layer.gain, layer.shift)
            affines[layer.layer] = ChannelAffine(affine.gain.float(), affine.shift.float())
    return affines


def factor_out(
    weight: torch.Tensor, bias: torch.Tensor, affine: ChannelAffine
) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel K' [out, ...] and bias B' [out] with gain * K' = `weight`, gain * B' + shift = `bias`."""
    gain, shift = affine.gain.to(weight), affine.shift.to(weight)
    return weight / broadcast_scale(gain, 0, weight.ndim), (bias - shift) / gain


def fold(
    codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, affine: ChannelAffine
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Absorb `affine` into the quantized convolution that it follows; nothing is rounded.

    Args:
        codes: integer weights [out, ...] on a grid that is symmetric about 0, any dtype.
        scale: weight scale [out], > 0.
        bias: [out].
        affine: what follows the convolution.

    Returns:
        Codes with the gain's sign, scale * |gain| and gain * bias + shift.
    """
    gain, shift = affine.gain.to(scale), affine.shift.to(scale)
    sign = broadcast_scale(gain.sign(), 0, codes.ndim).to(codes.dtype)
    return codes * sign, scale * gain.abs(), gain * bias + shift


def _is_unchanged(before: nn.Module | None, after: nn.Conv2d) -> bool:
    """A convolution that fusing did not touch, such as one of a squeeze-and-excitation."""
    return isinstance(before, nn.Conv2d) and torch.equal(
        before.weight.to(after.weight), after.weight
    )


def _enclosing_block(path: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """Innermost fusing block of the train form at `path` or around it."""
    module = modules.get(path)
    if module is not None and fusing_method(module) is not None:
        return module
    return _enclosing_block(path.rpartition(".")[0], modules) if path else None


def _dense_norm(block: nn.Module, merged: nn.Conv2d) -> BatchNorm | None:
    """BatchNorm that closes the branch of `block` with the largest kernel, of those in `merged`."""
    best, most_taps = None, 0
    for branch in _branches(block):
        convolutions = [layer for layer in branch if isinstance(layer, nn.Conv2d)]
        norm = branch[-1] if branch else None
        if not convolutions or not isinstance(norm, BatchNorm):
            continue
        taps = max(map(_taps, convolutions))
        if taps > most_taps and _is_part(convolutions, norm, merged):
            best, most_taps = norm, taps
    return best


def _branches(block: nn.Module) -> Iterator[Branch]:
    """Convolutions and BatchNorms of every branch, in the order in which they are registered.

    A child of a block is a branch, however deep it nests; the children of a list, and those of a
    block in the block, are branches of their own.
    """
    if isinstance(block, nn.Sequential):
        yield _weighted_layers(block)
        return
    children = list(block.children())
    for layer, successor in pairwise(children):
        if isinstance(layer, nn.Conv2d) and isinstance(successor, BatchNorm):
            yield (layer, successor)
    for child in children:
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)) or fusing_method(child) is not None:
            yield from _branches(child)
        elif not isinstance(child, nn.Conv2d | BatchNorm):
            yield _weighted_layers(child)


def _weighted_layers(branch: nn.Module) -> Branch:
    return [layer for layer in branch.modules() if isinstance(layer, nn.Conv2d | BatchNorm)]


def _is_part(convolutions: Sequence[nn.Conv2d], norm: BatchNorm, merged: nn.Conv2d) -> bool:
    """Shapes allow that the branch was added into `merged`, and its statistics are known."""
    return (
        norm.running_var is not None
        and norm.num_features == merged.out_channels
        and convolutions[0].in_channels == merged.in_channels
        and all(layer.groups % merged.groups == 0 for layer in convolutions)
        and max(map(_taps, convolutions)) <= _taps(merged)
    )


def _taps(convolution: nn.Conv2d) -> int:
    return math.prod(convolution.kernel_size)


def _norm_affine(norm: BatchNorm) -> ChannelAffine:
    """`norm` in evaluation mode as a gain and a shift, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * gain
    if norm.affine:
        gain, shift = gain * norm.weight, shift * norm.weight + norm.bias
    return _guarded(gain, shift)
