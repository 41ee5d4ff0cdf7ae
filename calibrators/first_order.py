"""What quantizing each part of a network costs at its outputs, from a few backward passes.

A quantization error e at the output of a layer moves the network's outputs by J e, with J their
derivative by that layer. With random signs r over the outputs, g = J^T r is one backward pass, and the
mean of (g . e)^2 over r is |J e|^2 (M. F. Hutchinson, Commun. Stat. Simul. 19 (1990) 433): the noise
power that the error alone would cause, to first order. The errors of all layers come from one forward
pass, their inputs and weights quantized with the scales that the model holds. So one set of passes
prices every layer, where measuring each alone takes a pass for each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from reptrt.calibrators.feed import Batch, num_pixels, tensors_of
from reptrt.calibrators.quantized.moving import SELECTING
from reptrt.calibrators.quantized.output_parts import find_parts, split_parts
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.models.card import Part

PROBES = 4
"""Backward passes: with 16 images the noise of a layer is known to 0.8 dB (one standard deviation)."""
_PIXELS = 4 * 320 * 320
"""At once: a backward pass holds every activation."""


@dataclass(frozen=True)
class NoiseSamples:
    """How each unit moves the outputs, along random directions.

    Attributes:
        units: layer, or quantizer that something else than a layer reads -> [samples] shares of the
            outputs' RMS, signed: errors of two units may add up or cancel.
    """

    units: dict[str, torch.Tensor]

    def noise(self, units: Collection[str]) -> float:
        """Noise-to-signal power at the outputs with `units` quantized and all else in float."""
        known = [self.units[unit] for unit in units if unit in self.units]
        return float(torch.stack(known).sum(0).square().mean()) if known else 0.0


def sample_noise(
    model: QuantizedModel, images: Batch, probes: int = PROBES, seed: int = 0
) -> NoiseSamples:
    """Noise samples of every layer and of every quantizer that an addition reads.

    Args:
        model: with calibrated scales; left as it is.
        images: [N, 3, H, W], or what a network with other inputs reads.
        probes: backward passes of each image.
        seed: of the signs.
    """
    parts = find_parts(model.graph_module.graph)
    size = len(images) if model.is_fixed else max(1, _PIXELS // num_pixels(images))
    chunks = [images[at : at + size] for at in range(0, len(images), size)]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[torch.Tensor]] = {}
    with model.float_mode():
        power = mean_power(model, chunks, parts)
        for chunk in chunks:
            _sample_chunk(model, chunk, probes, power, parts, generator, found)
    return NoiseSamples({unit: torch.cat(samples) for unit, samples in found.items()})


def join_samples(samples: Sequence[NoiseSamples]) -> NoiseSamples:
    """Those of several batches of one network as one."""
    units = samples[0].units
    return NoiseSamples({unit: torch.cat([one.units[unit] for one in samples]) for unit in units})


@torch.no_grad()
def mean_power(
    model: QuantizedModel, chunks: Sequence[Batch], parts: Sequence[Sequence[Part]]
) -> list[float]:
    """Squared sum of each part of the outputs, mean over the images."""
    total: list[float] = []
    for chunk in chunks:
        powers = [float(y.double().square().sum()) for y in split_parts(model(chunk), parts)]
        total = [a + b for a, b in zip(total or [0.0] * len(powers), powers, strict=True)]
    return [power / sum(map(len, chunks)) for power in total]


def _sample_chunk(
    model: QuantizedModel,
    images: Batch,
    probes: int,
    power: Sequence[float],
    parts: Sequence[Sequence[Part]],
    generator: torch.Generator,
    found: dict[str, list[torch.Tensor]],
) -> None:
    run = _Errors(model)
    with torch.enable_grad():
        outputs = tree_leaves(run.run(*tensors_of(images)))
        pieces = split_parts(tuple(outputs), parts)
    for gradients in probe_gradients(pieces, power, run.values, probes, generator):
        sums: dict[str, torch.Tensor] = {}
        for unit, gradient, error in zip(run.names, gradients, run.errors, strict=True):
            moved = (
                torch.zeros(len(images)) if gradient is None else _dot(gradient, error, len(images))
            )
            sums[unit] = sums.get(unit, 0.0) + moved
        for unit, moved in sums.items():
            found.setdefault(unit, []).append(moved)


def probe_gradients(
    pieces: Sequence[torch.Tensor],
    power: Sequence[float],
    values: Sequence[torch.Tensor],
    probes: int,
    generator: torch.Generator,
) -> Iterator[Sequence[torch.Tensor | None]]:
    """Derivatives by `values` of the outputs along random signs, `probes` times.

    Args:
        pieces: parts of the outputs, with their graph.
        power: of each piece; the outputs are counted in its root.
        values: tensors that the outputs may depend on.
        probes: backward passes.
        generator: draws the signs.
    """
    for probe in range(probes):
        total = torch.zeros((), device=pieces[0].device)
        for piece, own in zip(pieces, power, strict=True):
            if own > 0:
                signs = torch.randint(0, 2, piece.shape, generator=generator).to(piece) * 2 - 1
                total = total + (signs * piece).sum() / math.sqrt(own * len(power))
        if total.requires_grad:  # outputs such as class numbers move by steps or not at all
            yield torch.autograd.grad(
                total, values, retain_graph=probe + 1 < probes, allow_unused=True
            )
        else:
            yield [None] * len(values)


def _dot(gradient: torch.Tensor, error: torch.Tensor, count: int) -> torch.Tensor:
    """Products of both, summed over each image: [count]; over all where the images are interleaved."""
    product = (gradient * error).detach()
    if product.shape[0] == count:
        return product.flatten(1).sum(1).cpu()
    return (product.sum() / math.sqrt(count)).cpu().expand(count)


class _Errors(fx.Interpreter):
    """Runs the float network, and beside it each layer alone with quantized inputs and weights.

    Attributes:
        names: unit of each recorded node.
        values: the float output of each, with its graph.
        errors: what quantization adds to it.
    """

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__(model.graph_module)
        self._model = model
        self._quantized: dict[fx.Node, torch.Tensor] = {}
        self.names: list[str] = []
        self.values: list[torch.Tensor] = []
        self.errors: list[torch.Tensor] = []

    def run_node(self, node: fx.Node) -> object:
        """Run one node in float, and quantized where it reads something quantized."""
        result = super().run_node(node)
        if node.op == "call_module":
            self._quantized[node] = self._quantize(node, self.env[node.args[0]])  # type: ignore[index]
        elif node.op == "call_function" and any(n in self._quantized for n in node.all_input_nodes):
            self._compare(node, result)
        return result

    @torch.no_grad()
    def _quantize(self, node: fx.Node, x: torch.Tensor) -> torch.Tensor:
        quantizer = self._model.quantizer_at(node)
        quantizer.enabled = True
        quantized: torch.Tensor = quantizer(x)
        quantizer.enabled = False
        return quantized

    @torch.no_grad()
    def _compare(self, node: fx.Node, value: object) -> None:
        arguments, keywords = fx.map_arg(
            (node.args, node.kwargs), lambda n: self._quantized.get(n, self.env.get(n))
        )
        noisy = node.target(*arguments, **keywords)  # type: ignore[operator]
        if node.target in SELECTING:
            self._quantized[node] = noisy
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            if not value.requires_grad:  # nothing before it does
                value.requires_grad_()
            self.names.append(self._unit(node))
            self.values.append(value)
            self.errors.append(noisy - value)

    def _unit(self, node: fx.Node) -> str:
        """Its layer; of another operator the quantizer that it reads."""
        if node.name in self._model.placement.layers:
            return self._model.placement.layers[node.name]
        sources = list(node.all_input_nodes)
        for source in sources:
            if is_activation_call(source):
                quantizer = self._model.quantizer_at(source)
                names = self._model.activation_quantizers
                return next(name for name, one in names.items() if one is quantizer)
            if source in self._quantized:
                sources.extend(source.all_input_nodes)
        return node.name
