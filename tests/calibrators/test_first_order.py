"""The estimate of a layer's noise from backward passes, against the noise that is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reptrt.calibrators.first_order import sample_noise
from reptrt.calibrators.histogram.methods import MseCalibrator
from reptrt.calibrators.output_noise import output_noise
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.models.graph import trace
from tests.placing import Network, conv
from tests.tiny_networks import SIZE, calibrated, quantized, randomize, smooth_images

IMAGES = smooth_images(16, seed=2)


def measured(model: QuantizedModel, layer: str) -> float:
    """Noise at the outputs with the input and the weight of `layer` alone quantized."""
    node = next(name for name, own in model.placement.layers.items() if own == layer)
    points = [p.name for p in model.placement.points if any(c == node for _, c in p.edges)]
    reference = float_copy(model)
    with model.float_mode():
        for quantizer in (
            model.weight_quantizers[layer],
            *map(model.activation_quantizers.get, points),
        ):
            assert quantizer is not None
            quantizer.enabled = True
        return output_noise(model, [IMAGES], reference)


@pytest.fixture(scope="module")
def chain() -> QuantizedModel:
    """Twelve layers whose weights have 3 to 8 bits, so that their noises differ widely."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for name, layer in net.named_children():
            x = layer(x) if name == "l11" else nn.functional.silu(layer(x))
        return x

    layers = {f"l{i}": conv(3 if i == 0 else 8, 8, 3) for i in range(12)}
    model = quantized(trace(randomize(Network(forward, **layers)), (SIZE, SIZE)))
    MseCalibrator().calibrate(model, [smooth_images(16, seed=1)])
    for index, quantizer in enumerate(model.weight_quantizers.values()):
        quantizer.scale.mul_(2.0 ** (index * 5 % 6))
    return model


def test_layers_rank_as_they_are_measured(chain: QuantizedModel) -> None:
    samples = sample_noise(chain, IMAGES)
    layers = list(chain.weight_quantizers)
    pairs = np.array([[samples.noise([layer]), measured(chain, layer)] for layer in layers])
    estimated, found = pairs.T.argsort(axis=1).argsort(axis=1)
    assert np.corrcoef(estimated, found)[0, 1] > 0.95
    assert np.abs(10 * np.log10(pairs[:, 0] / pairs[:, 1])).mean() < 1.5


def test_of_a_linear_network_the_estimate_is_what_is_measured() -> None:
    """One layer: the outputs' noise is the layer's error itself, whatever the signs."""
    model = quantized(
        trace(randomize(Network(lambda net, x: net.a(x), a=conv(3, 1))), (SIZE, SIZE))
    )
    MseCalibrator().calibrate(model, [IMAGES])
    samples = sample_noise(model, IMAGES, probes=64)
    assert samples.noise(["a"]) == pytest.approx(measured(model, "a"), rel=0.15)


def test_the_addition_of_a_quantized_skip_belongs_to_its_quantizer() -> None:
    model = calibrated("residual")
    samples = sample_noise(model, smooth_images(4, seed=2))
    points = {point.name for point in model.placement.points}
    assert samples.units.keys() <= points | set(model.weight_quantizers)
    assert set(model.weight_quantizers) <= samples.units.keys()
    assert samples.units.keys() & points


def test_the_model_is_left_as_it_is_and_the_same_seed_gives_the_same(chain: QuantizedModel) -> None:
    first, second = sample_noise(chain, IMAGES), sample_noise(chain, IMAGES)
    assert all(torch.equal(first.units[unit], second.units[unit]) for unit in first.units)
    assert all(q.enabled for q in chain.activation_quantizers.values())
    assert all(parameter.grad is None for parameter in chain.graph_module.parameters())
