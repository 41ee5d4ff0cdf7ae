"""Partial quantization: leave the layers float that cost the most, until the outputs are close enough.

A depthwise network with activations that have no upper bound (YOLOv6Lite: hard swish) has a few tensors
with one channel a hundred times wider than the others, which no per-tensor grid holds. YOLOv6's own
recipe for sensitive layers is to leave them float (meituan/YOLOv6, tools/partial_quantization). Here
they are found without labels: what each activation with the layers that read it adds to the noise at the
outputs comes from a few backward passes (`reptrt.calibrators.first_order`), with scales of the best
baseline. Those with most noise go first; where the microseconds are known that INT8 saves in each
layer, those with most noise for a microsecond. Noises add up well enough to choose by; the sum is then
measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Batch, num_pixels, shake
from reptrt.calibrators.first_order import join_samples, sample_noise
from reptrt.calibrators.histogram.best import compare_baselines
from reptrt.calibrators.histogram.methods import observe_activations, scale_weights
from reptrt.calibrators.output_noise import (
    Reference,
    decibel,
    guard_images,
    output_noise,
    remembering,
    worst_noise,
)
from reptrt.calibrators.progress import Progress, no_progress, share_of
from reptrt.calibrators.quantized.half_rest import HalfRest
from reptrt.calibrators.quantized.moving import MOVING
from reptrt.calibrators.quantized.placement import QuantizationPoint
from reptrt.calibrators.quantized.pools import AVERAGES
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import float_copy

logger = logging.getLogger(__name__)

Noise = Callable[[], float]

SENSITIVE = "INT8 costs the outputs too many dB here"
"""Why the layers that are found stay float."""

_MOST = 0.5
"""Where nobody states a bound; a network that needs more is not for INT8."""
MARGIN = 1.0
"""dB more than the worst output needs: what other images cost."""
_AT_ONCE = 8
_DRAWS = 2
_FEWEST, _MOST_IMAGES, _PIXELS = 4, 16, 16 * 320 * 320
"""Images that are compared: as many as `_PIXELS`, for a large map tells as much as several small ones."""


@dataclass(frozen=True)
class Sensitivity:
    """Content of sensitivity.json: layers that stay float, and how close the outputs are then.

    Attributes:
        layers: layer -> SNR at the outputs, in dB, when nothing but its input and what reads it is
            quantized; None where that was not measured, or nothing is lost.
        snr_db: at the outputs, as the aim measures it, with all other layers in INT8 by the best baseline;
            None where nothing is lost.
        int8_snr_db: the same with every layer in INT8.
        float_attention: attention, which FP8 makes faster, stays float too.
    """

    layers: Mapping[str, float | None]
    snr_db: float | None = None
    int8_snr_db: float | None = None
    float_attention: bool = False


@dataclass(frozen=True)
class Aim:
    """How close the outputs have to be with the best baseline.

    Attributes:
        min_snr: SNR at the outputs in dB, mean over them, or of the worst.
        gain: dB more than with every layer in INT8, in place of `min_snr`; 0 takes that.
    """

    min_snr: float
    gain: float = 0.0
    of_worst: bool = False
    """Whether the worst part of the outputs has to be as close as that."""
    most: float = _MOST
    """Share of the activations, 0 to 1, that may be left out for it."""
    float_attention: bool = False
    """Whether attention stays float, where FP8 would be faster."""
    half_rest: bool = False
    """Whether what is not INT8 is rounded to FP16 where noise is measured."""

    def noise(self, in_int8: float) -> float:
        """Most noise-to-signal power, where all layers in INT8 have `in_int8`."""
        least = decibel(in_int8) + self.gain if self.gain else self.min_snr
        least += MARGIN if self.of_worst and not self.gain else 0.0
        return float(10 ** (-least / 10))


def find_sensitive_layers(
    model: QuantizedModel,
    batches: Batches,
    aim: Aim,
    progress: Progress = no_progress,
    savings: Mapping[str, float] | None = None,
) -> Sensitivity:
    """Layers that must stay float for the outputs to reach `aim` with the best baseline.

    Args:
        model: placed, uncalibrated; it gets the scales of the baseline that has least noise.
        batches: calibration images; scales come from four batches, and 16 images are compared, fewer
            (4 at least) of more than 320x320 pixels.
        aim: where to stop.
        progress: called as work advances.
        savings: layer -> microseconds that INT8 saves; None takes all layers for equal.

    Returns:
        The layers; none where all together reach `aim`.
    """
    reference = float_copy(model)
    scale_weights(model)
    observers = observe_activations(
        model, guard_images(batches), share_of(progress, "sensitivity", 0.0, 0.6)
    )
    compare_baselines(model, observers, compared_images(model, batches), reference)
    rest = share_of(progress, "sensitivity", 0.6, 1.0)
    return find_sensitive_in_calibrated(model, batches, aim, reference, rest, savings)


def find_sensitive_in_calibrated(
    model: QuantizedModel,
    batches: Batches,
    aim: Aim,
    reference: Reference,
    progress: Progress = no_progress,
    savings: Mapping[str, float] | None = None,
) -> Sensitivity:
    """As `find_sensitive_layers`, with the scales that `model` has; `reference` is its float network."""
    images = compared_images(model, batches)
    draws = [images, *(shaken_images(images) if aim.of_worst else ())]
    expected = remembering(reference, [batch for draw in draws for batch in draw])

    def measure(draw: Sequence[Batch] = images) -> float:
        find_noise = worst_noise if aim.of_worst else output_noise
        return find_noise(HalfRest.of(model) if aim.half_rest else model, draw, expected)

    def measure_surely(budget: float) -> float:
        noise = measure()
        return noise if noise > budget else max([noise, *map(measure, draws[1:])])

    in_int8 = measure()
    budget = aim.noise(in_int8)
    in_int8 = measure_surely(budget)
    all_int8 = decibel(in_int8)
    if in_int8 <= budget:
        return Sensitivity({}, all_int8, all_int8)
    samples = join_samples([sample_noise(model, batch) for batch in images])
    # Attention is quantized as a whole, or not at all.
    attention = {name for site in model.placement.attention for name in site.points}
    points = [point for point in model.placement.points if point.name not in attention]
    readers = {point.name: _layers_behind(model, point) for point in points}
    alone = {name: samples.noise({name, *layers}) for name, layers in readers.items()}
    weight = {name: _saved(layers, savings) for name, layers in readers.items()}
    order = sorted(alone, key=lambda name: alone[name] / weight[name], reverse=True)
    most = order[: int(aim.most * len(order))]
    left_out, left = _leave_out(model, most, readers, measure_surely, budget)
    found: dict[str, float] = {}
    for done, name in enumerate(left_out, start=1):
        snr = decibel(_measure_alone(model, name, readers[name], measure))
        found |= dict.fromkeys(readers[name], snr)
        progress("", done, len(left_out))
    return Sensitivity(found, decibel(left) if left else None, all_int8)


def _saved(layers: Sequence[str], savings: Mapping[str, float] | None) -> float:
    """Microseconds that these layers save in INT8, at least a hundredth; each 1 where nothing is known."""
    if not savings:
        return float(max(1, len(layers)))
    return max(0.01, sum(savings.get(layer, 0.0) for layer in layers))


def compared_images(model: QuantizedModel, batches: Batches) -> list[Batch]:
    """As many images as are worth their time, in batches as validation has them.

    Those are of 8 images; whole ones where `model` takes no other number.
    """
    found: list[Batch] = []
    left = 1
    for batch in batches:
        if not found:
            left = max(_FEWEST, min(_MOST_IMAGES, _PIXELS // num_pixels(batch)))
        if model.is_fixed:
            found.append(batch)
        else:
            count = min(left, len(batch))
            found += [batch[at : min(at + _AT_ONCE, count)] for at in range(0, count, _AT_ONCE)]
        left -= len(batch)
        if left <= 0:
            break
    return found


def shaken_images(images: Sequence[Batch]) -> list[list[Batch]]:
    """The same images, as good as equal, as often as chance is asked again.

    Which of two codes a value between them gets is chance, and moves the noise of some networks by 2 dB.
    """
    return [[shake(batch, seed) for batch in images] for seed in range(_DRAWS)]


def _layers_behind(model: QuantizedModel, point: QuantizationPoint) -> list[str]:
    """Layers that read what `point` quantizes, also through a concat or another moving operator.

    Where only an add reads it, the layers that write it: it is float where they are.
    """
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    found: list[str] = []
    waiting = [nodes[consumer] for _, consumer in point.edges]
    for node in waiting:
        if node.name in model.placement.layers:
            found.append(model.placement.layers[node.name])
        elif node.target in MOVING or node.target in AVERAGES or is_activation_call(node):
            waiting.extend(node.users)
    layers = model.placement.layers
    return found or [layers[value] for value in point.tensors if value in layers]


def _measure_alone(
    model: QuantizedModel, name: str, layers: Sequence[str], measure: Noise
) -> float:
    """Noise at the outputs of one activation quantizer with the weights that read it."""
    own = [model.activation_quantizers[name], *(model.weight_quantizers[layer] for layer in layers)]
    with model.float_mode():
        for quantizer in own:
            quantizer.enabled = True
        noise = measure()
        for quantizer in own:
            quantizer.enabled = False
    return noise


def _leave_out(
    model: QuantizedModel,
    order: Sequence[str],
    readers: Mapping[str, Sequence[str]],
    measure: Callable[[float], float],
    budget: float,
) -> tuple[Sequence[str], float]:
    """Activations to leave out with their readers, in `order`, until `measure` is in budget; what is left."""
    left_out: list[str] = []
    noise = measure(budget)
    while noise > budget and len(left_out) < len(order):
        name = order[len(left_out)]
        left_out.append(name)
        model.activation_quantizers[name].enabled = False
        for layer in readers[name]:
            model.weight_quantizers[layer].enabled = False
        noise = measure(budget)
    for quantizer in (*model.activation_quantizers.values(), *model.weight_quantizers.values()):
        quantizer.enabled = True
    logger.info("%d activations left out: %.1f dB at the outputs", len(left_out), decibel(noise))
    if noise > budget:
        logger.warning(
            "the outputs reach %.1f dB of the %.1f dB asked for with %d of %d activations in float",
            decibel(noise), decibel(budget), len(left_out), len(readers),
        )  # fmt: skip
    return left_out, noise
