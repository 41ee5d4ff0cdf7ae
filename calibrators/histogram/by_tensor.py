"""Clip every tensor at its own place: where it costs the network's outputs least.

A baseline chooses all scales by one rule, from the values alone. How much a tensor's clipped values matter to the
outputs, and how much its rounded ones, differs from tensor to tensor: behind squeeze-and-excitation a few
images have activations fifty times those of others, and the network hardly reads them. So each scale is chosen
by the noise that it causes at the outputs, to first order (`reptrt.calibrators.first_order`). It counts by its logarithm, image
by image: else the one image with the widest values would choose. The estimate is one for small errors, and clipping makes
large ones, so the result is one more baseline to compare, and no rule.

Our own; what it gains is in docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from reptrt.calibrators.feed import Batch, first_images, tensors_of
from reptrt.calibrators.first_order import (
    mean_power,
    probe_gradients,
)
from reptrt.calibrators.output_noise import ActivationScales
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.output_parts import find_parts, split_parts
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.quantizers import TensorQuantizer

NUM_IMAGES = 64
"""That are looked at, fewer where they are large."""
_PIXELS = 16 * 320 * 320
"""Of all of these images."""
_PROBES = 2
"""Backward passes of each image."""
_AT_ONCE = 4 * 320 * 320
"""Pixels of one pass: it holds every activation."""
STEP, LOWEST = 1.3, 0.25
"""From one scale to the next, and the first one, of the smallest that a baseline chose."""
FLOOR = 1e-3
"""Noise-to-signal power below which an image hardly tells scales apart: a network has dozens of tensors."""


def scales_by_tensor(
    model: QuantizedModel,
    images: Sequence[Batch],
    scales: Mapping[str, ActivationScales],
    best: str,
    progress: Progress = no_progress,
    seed: int = 0,
) -> ActivationScales:
    """Scale of every activation quantizer that causes least noise at the outputs.

    Args:
        model: its scales are not read, and left as they are.
        images: to calibrate with; 64 at most are looked at, 16 of 320x320 pixels.
        scales: by every baseline: the choice is among what lies between them, and below.
        best: the baseline that keeps what no output depends on, and codes that are not evenly spaced.
        progress: called as work advances.
        seed: of the signs along which the outputs are looked at.

    Returns:
        Quantizer name -> scale [].
    """
    known = {
        id(quantizer): name
        for name, quantizer in model.activation_quantizers.items()
        if quantizer.is_uniform and quantizer.axis is None
    }
    chosen = dict(scales[best])
    if not known:
        return chosen
    tried = {
        name: _candidates([float(one[name]) for one in scales.values()]) for name in known.values()
    }
    noise = {name: torch.zeros(len(found)) for name, found in tried.items()}
    parts, generator = find_parts(model.graph_module.graph), torch.Generator().manual_seed(seed)
    at_once = math.inf if model.is_fixed else _AT_ONCE
    chunks = list(first_images(images, NUM_IMAGES, _PIXELS, at_once))
    with model.float_mode():
        power = mean_power(model, chunks, parts)
        for done, chunk in enumerate(chunks, start=1):
            run = _Record(model, known)
            with torch.enable_grad():
                pieces = split_parts(tuple(tree_leaves(run.run(*tensors_of(chunk)))), parts)
            values = list(run.values.values())
            gradients = list(probe_gradients(pieces, power, values, _PROBES, generator))
            moved: dict[str, torch.Tensor] = {}
            for index, (node, value) in enumerate(run.values.items()):
                name = known[id(model.quantizer_at(node))]
                along = [some[index] for some in gradients]
                quantizer = model.quantizer_at(node)
                shifts = _shifts(quantizer, value.detach(), tried[name], along, len(chunk))
                moved[name] = moved.get(name, 0.0) + shifts
            for name, shifts in moved.items():
                noise[name] += (shifts.square().mean(1) / FLOOR).log1p().sum(1)
            progress("clip tensors", done, len(chunks))
    for name, sums in noise.items():
        if sums.isfinite().all() and sums.any():
            chosen[name] = torch.full_like(chosen[name], tried[name][int(sums.argmin())])
    return chosen


def _candidates(known: list[float]) -> list[float]:
    """Scales to try, from below the smallest of those `known` to the largest."""
    low, high = LOWEST * min(known), max(known)
    count = max(1, math.ceil(math.log(high / low, STEP)))
    return [low * (high / low) ** (index / count) for index in range(count + 1)]


@torch.no_grad()
def _shifts(
    quantizer: TensorQuantizer,
    value: torch.Tensor,
    scales: Sequence[float],
    gradients: Sequence[torch.Tensor | None],
    count: int,
) -> torch.Tensor:
    """How far quantizing `value`, of `count` images, moves the outputs: [scales, probes, images]."""
    found = torch.zeros(len(scales), len(gradients), count)
    known = [gradient.reshape(len(value), -1) for gradient in gradients if gradient is not None]
    if not known:  # no output depends on it, whatever the signs
        return found
    along, is_by_image = torch.stack(known, 1), len(value) == count
    before = quantizer.scale.clone()
    quantizer.enabled = True
    for row, scale in zip(found, scales, strict=True):
        quantizer.scale.fill_(scale)
        error = (quantizer(value) - value).reshape(len(value), -1, 1)
        moved = torch.bmm(along, error)[..., 0]  # [rows, probes]
        if not is_by_image:  # rows of images are interleaved
            moved = (moved.sum(0, keepdim=True) / math.sqrt(count)).expand(count, -1)
        row.copy_(moved.T)
    quantizer.enabled = False
    quantizer.scale.copy_(before)
    return found


class _Record(fx.Interpreter):
    """Runs the float network.

    Args:
        model: in float mode.
        known: `id` of the quantizers that are looked at.

    Attributes:
        values: what each call of these hands to its readers, with its graph.
    """

    def __init__(self, model: QuantizedModel, known: Collection[int]) -> None:
        super().__init__(model.graph_module)
        self._model, self._known = model, known
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, node: fx.Node) -> object:
        """Run one node; a quantizer hands on a tensor of its own."""
        result = super().run_node(node)
        if is_activation_call(node) and id(self._model.quantizer_at(node)) in self._known:
            assert isinstance(result, torch.Tensor)
            result = result.clone()
            if not result.requires_grad:  # nothing before it does
                result.requires_grad_()
            self.values[node] = result
        return result
