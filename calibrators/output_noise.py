"""Noise at the outputs of a quantized network, compared with the float network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Batch
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.output_parts import find_parts, split_parts
from reptrt.calibrators.quantized.quantized_model import QuantizedModel

FINE_DB = 50.0
"""What the outputs change by from image to image, over the noise, where no step is left to take: the float layers' FP16 alone
makes as much noise (docs/effort.md)."""

ActivationScales = Mapping[str, torch.Tensor]
"""Quantizer name -> scale []."""

BACKGROUND = 0.01
"""Root of the mean square that scores in 0..1 have where nothing is found."""


@torch.no_grad()
def compare_scales(
    model: QuantizedModel,
    batches: Sequence[Batch] | Batches,
    scales: Mapping[str, ActivationScales],
    reference: Callable[[Batch], tuple[torch.Tensor, ...]],
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Noise-to-signal power at the outputs, averaged over their parts, for each set of scales.

    `reference` is the float network. Of an output that joins boxes and scores, each is a part. Images are averaged
    by `mean_of_images`.
    """
    parts = find_parts(model.graph_module.graph)
    signal: list[torch.Tensor] = []
    noise: dict[str, list[torch.Tensor]] = {name: [] for name in scales}
    for done, batch in enumerate(batches, start=1):
        expected = split_parts(reference(batch), parts)
        signal.append(_power_of_images(expected, len(batch)))
        for name, candidate in scales.items():
            set_activation_scales(model, candidate)
            found = split_parts(model(batch), parts)
            error = [a - b for a, b in zip(found, expected, strict=True)]
            noise[name].append(_power_of_images(error, len(batch)))
        progress("compare baselines", done, len(batches))
    powers = torch.cat(signal, 1)
    return {name: mean_of_images(torch.cat(found, 1), powers) for name, found in noise.items()}


def mean_of_images(noise: torch.Tensor, signal: torch.Tensor) -> float:
    """Noise-to-signal power of a typical image, averaged over the parts.

    A few images whose activations are far wider than the others' would decide alone by their power. How likely noise is
    to change an answer grows with its root, until the answer is lost: with noise-to-signal power x of an image, the root of
    x / (1 + x) is averaged over the images.

    Args:
        noise: power of the error, [parts, images].
        signal: power of the float network's outputs, [parts, images]; of an image with less than the mean, the mean
            counts. A part that is always zero says nothing.
    """
    usual = signal.mean(1, keepdim=True).maximum(signal)
    lost = torch.where(usual > 0, noise / (noise + usual), 0.0).sqrt().mean(1).square()
    return float((lost / (1 - lost)).mean())


def describe_noise(noise: Mapping[str, float]) -> str:
    """Noise-to-signal ratios as text, in dB."""
    return ", ".join(f"{name} {decibel(value):.1f} dB" for name, value in noise.items())


def decibels(noise: Mapping[str, float]) -> dict[str, float]:
    """Noise-to-signal ratios as SNR in dB."""
    return {name: decibel(value) for name, value in noise.items()}


def decibel(noise_to_signal: float) -> float:
    """SNR in dB of a noise-to-signal power ratio."""
    return math.inf if noise_to_signal == 0 else -10 * math.log10(noise_to_signal)


def set_activation_scales(model: QuantizedModel, scales: ActivationScales) -> None:
    """Copy `scales` (quantizer name -> scale) into the activation quantizers."""
    for name, scale in scales.items():
        model.activation_quantizers[name].scale.copy_(scale)


def _power_of_images(outputs: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """[parts, images]; of a part whose rows are no images, their mean for each."""
    rows = [output.double().flatten(1).square().sum(1).cpu() for output in outputs]
    return torch.stack(
        [row if len(row) == count else row.sum().expand(count) / count for row in rows]
    )


def _power(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([output.double().square().sum().cpu() for output in outputs])


GUARD_BATCHES, _FEWEST = 4, 16
"""Batches, and samples, on which the guard compares: five passes over all images would cost a minute."""


Reference = Callable[[Batch], tuple[torch.Tensor, ...]]
"""The float network: images [N, 3, H, W], or other inputs -> outputs."""


def guard_images(batches: Batches) -> Sequence[Batch]:
    """The calibration images on which methods are compared: more batches where each has one."""
    found: list[Batch] = []
    for batch in batches:
        found.append(batch)
        if len(found) >= GUARD_BATCHES and sum(map(len, found)) >= _FEWEST:
            break
    return found


def remembering(reference: Reference, images: Sequence[Batch]) -> Reference:
    """`reference` that is run once for each of `images`, however often it is asked."""
    known: dict[int, tuple[torch.Tensor, ...]] = {}

    def run(batch: Batch) -> tuple[torch.Tensor, ...]:
        if not any(batch is one for one in images):  # another may get its `id` later
            return reference(batch)
        if id(batch) not in known:
            known[id(batch)] = reference(batch)
        return known[id(batch)]

    return run


def output_noise(
    model: QuantizedModel, images: Batches | Sequence[Batch], reference: Reference
) -> float:
    """Noise-to-signal power at the outputs of `model` as it is."""
    current = {name: q.scale.clone() for name, q in model.activation_quantizers.items()}
    return compare_scales(model, images, {"": current}, reference)[""]


@torch.no_grad()
def fine_noise(model: QuantizedModel, images: Sequence[Batch], reference: Reference) -> float:
    """Noise-to-signal power, as of `compare_scales`, below which calibration has nothing left to gain.

    It is `FINE_DB` below what varies from image to image, in the part of the outputs where that is least: a large
    output that is the same for all images has a high SNR, whatever becomes of the rest. Outputs that never vary,
    or whose size does, tell nothing: the result is 0, and no noise is below it.
    """
    parts = find_parts(model.graph_module.graph)
    sums: list[torch.Tensor] = []
    power = rows = torch.zeros(1)
    for batch in images:
        pieces = [piece.double() for piece in split_parts(reference(batch), parts)]
        found = [piece.sum(0) for piece in pieces]
        if sums and [one.shape for one in found] != [one.shape for one in sums]:
            return 0.0
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        power = power + _power(pieces)
        rows = rows + torch.tensor([len(piece) for piece in pieces])
    same = _power(sums) / rows
    varying = (1 - same / power)[power > 0]
    return max(0.0, float(varying.min())) * 10 ** (-FINE_DB / 10) if len(varying) else 0.0


@torch.no_grad()
def worst_noise(model: QuantizedModel, images: Sequence[Batch], reference: Reference) -> float:
    """Noise-to-signal power of `model` as it is, at that part of its outputs where it is largest.

    As in validation, it is the mean over batches in decibels. Of scores that stay near 0 in all images the
    digits mean nothing: a part in 0..1 counts as a signal of `BACKGROUND` at least.
    """
    parts = find_parts(model.graph_module.graph)
    signals, noises, floors = [], [], []
    is_score = torch.ones(1, dtype=torch.bool)
    for batch in images:
        expected = split_parts(reference(batch), parts)
        error = [a - b for a, b in zip(split_parts(model(batch), parts), expected, strict=True)]
        signals.append(_power(expected))
        noises.append(_power(error))
        floors.append(torch.tensor([BACKGROUND**2 * part.numel() for part in expected]))
        scores = [bool(part.min() >= 0) and bool(part.max() <= 1) for part in expected]
        is_score = is_score & torch.tensor(scores)
    signal, noise, floor = map(torch.stack, (signals, noises, floors))
    signal = torch.where(is_score, signal.maximum(floor), signal)
    ratio = torch.where(signal > 0, noise / signal, 0.0)
    return float(ratio.log().mean(0).exp().max())
