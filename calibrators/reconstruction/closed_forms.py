"""What a block gains without a gradient: clips by output error, and an affine map per channel from statistics.

On a few images, with the block's quantized inputs, so that only the block's own noise counts. First each
activation's step, by the error of the block's outputs; then layer by layer in order, each behind the corrected
ones before it, the gain and offset of every output channel that bring it closest to the float layer on the same
inputs: a = cov(y, q) / var(q), d = mean(y) - a mean(q). The offset is what is called bias correction (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721), the pair is QwT-v2's
affine, in QPRep's place, where it is free.
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.reconstruction.learned import LearnedScale
from reptrt.calibrators.reconstruction.objective import BlockDistances, Sample
from reptrt.calibrators.reconstruction.reconstruct import LearnedBlock

FACTORS = (0.7, 0.8, 0.9, 1.1, 1.25)
"""Of an activation's step that are tried: the baseline that it starts from clips by the tensor, not by the output."""

MOST_GAIN = 2.0
"""A gain beyond it, or below its inverse, is that of a channel that a few images do not know."""

aten = torch.ops.aten


@torch.no_grad()
def fit_closed_forms(
    learned: LearnedBlock, distances: BlockDistances, images: torch.Tensor
) -> None:
    """Improve `learned` in place.

    Args:
        learned: the block.
        distances: of the block, computed with what is learned.
        images: calibration images [n] that it is fitted on.
    """
    sample = distances.sample(images, stage=False)
    for scale in learned.scales:
        _choose_step(scale, distances, sample)
    expected = distances.run(sample, in_float=True)
    for node, layer in learned.layers_with_bias:
        found = _by_channel(node, distances.run(sample)[node])
        target = _by_channel(node, expected[node])
        layer.follow_by(*fit_affine(found, target, with_gain=learned.has_gain))


@torch.no_grad()
def own_snr(distances: BlockDistances, sample: Sample) -> float:
    """SNR in dB of the outputs of the block alone: against the float block on the same inputs, the least of them."""
    expected, found = distances.run(sample, in_float=True), distances.run(sample)
    ratios = [
        expected[node].square().sum() / (found[node] - expected[node]).square().sum()
        for node in sample.expected
    ]
    return float(10 * torch.stack(ratios).log10().min())


def fit_affine(
    found: torch.Tensor, expected: torch.Tensor, *, with_gain: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain and offset [c] that bring `found` [c, n] closest to `expected` [c, n], squared.

    Without a gain, and where a channel does not vary, that is 1.
    """
    mean, target = found.mean(1), expected.mean(1)
    gain = torch.ones_like(mean)
    if with_gain:
        centred = found - mean[:, None]
        variance = centred.square().mean(1)
        covariance = (centred * (expected - target[:, None])).mean(1)
        varies = variance > 0
        gain = (covariance / variance).where(varies, gain).clamp(1 / MOST_GAIN, MOST_GAIN)
    return gain, target - gain * mean


def _choose_step(scale: LearnedScale, distances: BlockDistances, sample: Sample) -> None:
    """Stretch `scale` by the factor with the least distance of the block's outputs."""
    least, best = float(distances.measure(sample).block), 1.0
    for factor in FACTORS:
        scale.stretch(factor)
        found = float(distances.measure(sample).block)
        scale.stretch(1 / factor)
        if found < least:
            least, best = found, factor
    scale.stretch(best)


def _by_channel(node: fx.Node, value: torch.Tensor) -> torch.Tensor:
    """Output of the layer `node` as [channels, positions]."""
    return value.movedim(-1 if node.target is aten.linear.default else 1, 0).flatten(1)
