from __future__ import annotations

import copy

import pytest
import torch

from reptrt.calibrators.progress import no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction.baseline_guard import start_at_best_baseline
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.second_order import fit_weights as module
from reptrt.calibrators.second_order.fit_weights import fit_weights
from reptrt.calibrators.settings import Reconstruction, Settings
from tests.reconstructing import all_values, differing, state_of
from tests.tiny_networks import quantized, smooth_images, traced

BITS = (4, 8)
NETWORKS = ("plain", "reparameterized", "residual", "detector")


def started(name: str) -> tuple[QuantizedModel, list[torch.Tensor]]:
    model, images = quantized(traced(name), BITS), list(smooth_images(48, seed=1).split(16))
    start_at_best_baseline(model, images, Reconstruction(), no_progress)
    return model, images


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_come_closer_to_float_on_new_images(name: str) -> None:
    model, images = started(name)
    before, reference = copy.deepcopy(model), smooth_images(32, seed=9)
    fit_weights(model, images, seed=0)
    with torch.no_grad(), before.float_mode():
        expected = before(reference)
    errors = []
    for each in (before, model):
        with torch.no_grad():
            found = each(reference)
        errors.append(
            sum(
                float((a - b).square().sum() / b.square().sum())
                for a, b in zip(found, expected, strict=True)
            )
        )
    assert errors[1] < 0.8 * errors[0]


def test_the_mean_output_of_the_first_layer_is_the_float_one() -> None:
    model, images = started("plain")
    with model.float_mode():
        wanted = all_values(model, torch.cat(images))
    fit_weights(model, images, seed=0)
    found = all_values(model, torch.cat(images))
    layer = next(node for node in found if node.name in model.placement.layers)
    before, after = (values[layer].mean((0, 2, 3)) for values in (wanted, found))
    spread = wanted[layer].std((0, 2, 3))
    assert ((after - before).abs() < 0.02 * spread).all()


def test_a_seed_gives_the_same_bits_and_few_images_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_PIXELS", 32 * 16 * 16)
    first, images = started("reparameterized")
    second, _ = started("reparameterized")
    fit_weights(first, images, seed=3)
    fit_weights(second, images[:2], seed=3)
    assert differing(state_of(first), state_of(second)) == set()


@pytest.mark.parametrize("name", NETWORKS)
def test_as_a_calibrator_it_is_no_worse_than_the_best_baseline(name: str) -> None:
    model, images = quantized(traced(name), BITS), list(smooth_images(48, seed=1).split(16))
    result = create_calibrator("gptq", Settings(seed=1)).calibrate(model, images)
    assert result.method == "gptq"
    assert result.compared["gptq"] == max(result.compared.values())
    for layer, quantizer in model.weight_quantizers.items():
        codes = quantizer.quantize(model.weight_of(layer))
        limit = quantizer.grid.quant_max
        assert codes.abs().max() <= limit
