from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reptrt.calibrators.histogram import best
from reptrt.calibrators.histogram.best import (
    CANDIDATES,
    BestBaselineCalibrator,
    with_biases,
)
from reptrt.calibrators.histogram.methods import MaeCalibrator, MseCalibrator
from reptrt.calibrators.output_noise import compare_scales, decibel, set_activation_scales
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.registry import create_calibrator
from reptrt.models.graph import trace
from tests.reconstructing import typical
from tests.tiny_networks import quantized


def two_convolutions() -> QuantizedModel:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1))
    return quantized(trace(module.eval(), (8, 8)))


def uniform_images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, 8, 8, generator=generator) for _ in range(4)]


def images_with_outliers() -> list[torch.Tensor]:
    batches = uniform_images()
    batches[1][0, 0, 0, 0] = 60.0
    return batches


def scales_of(model: QuantizedModel) -> dict[str, torch.Tensor]:
    return {name: q.scale.clone() for name, q in model.activation_quantizers.items()}


def noise_of(
    model: QuantizedModel, images: list[torch.Tensor], name: str, scales: dict[str, torch.Tensor]
) -> float:
    reference = float_copy(model)
    return compare_scales(model, images, {name: scales}, reference)[name]


def test_clean_images_need_no_clipping() -> None:
    model = two_convolutions()
    result = BestBaselineCalibrator().calibrate(model, uniform_images())
    notes = result.compared
    names = ["minmax", "percentile", "entropy", "mse", "mae", "by-tensor"]
    best = max(names, key=lambda name: notes[name])
    assert list(notes) == [*names, with_biases(best)]
    assert notes[result.method] == max(notes.values())
    assert notes["minmax"] >= notes[best] - 0.5


def test_gaussian_images_pick_min_max_over_every_clip_by_error() -> None:
    generator = torch.Generator().manual_seed(3)
    model = quantized(trace(nn.Sequential(nn.Conv2d(3, 8, 1)).eval(), (8, 8)))
    images = [torch.randn(16, 3, 8, 8, generator=generator).clamp(-2, 2) for _ in range(2)]
    result = BestBaselineCalibrator().calibrate(model, images)
    assert result.method == with_biases("minmax")
    amax = max(float(batch.abs().max()) for batch in images)
    scale = next(iter(model.activation_quantizers.values())).scale
    assert float(scale) == pytest.approx(amax / 127, rel=1e-6)


def test_planted_outliers_are_clipped_and_the_notes_say_why() -> None:
    model = two_convolutions()
    result = BestBaselineCalibrator().calibrate(model, images_with_outliers())
    notes = result.compared
    *names, corrected = notes
    best = max(names, key=lambda name: notes[name])
    assert result.method == corrected == with_biases(best)
    assert notes[corrected] > notes[best]
    assert best != "minmax"


def test_biases_stay_as_they_are_where_correcting_them_does_not_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = two_convolutions(), uniform_images()
    bias = model.graph_module.get_parameter("2.bias")
    before = bias.clone()

    def spoil(*_: object) -> None:
        bias.add_(1.0)

    monkeypatch.setattr(best, "correct_biases", torch.no_grad()(spoil))
    result = BestBaselineCalibrator().calibrate(model, images)
    assert torch.equal(bias, before)
    assert "biases" not in result.method


def test_the_best_scales_stay_in_the_model() -> None:
    images = images_with_outliers()
    model = two_convolutions()
    result = BestBaselineCalibrator().calibrate(model, images)
    alone = two_convolutions()
    next(c for c in CANDIDATES if result.method == with_biases(c.name))().calibrate(alone, images)
    kept, expected = scales_of(model), scales_of(alone)
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_noise_is_the_error_power_over_the_signal_power_of_typical_images() -> None:
    images = uniform_images()[:2]
    model = two_convolutions()
    MseCalibrator().calibrate(model, images)
    mse = scales_of(model)
    noise = noise_of(model, images, "mse", mse)
    with torch.no_grad():
        actual = torch.cat([model(batch)[0] for batch in images]).double()
        with model.float_mode():
            reference = torch.cat([model(batch)[0] for batch in images]).double()
    assert noise == pytest.approx(typical(actual - reference, reference), rel=1e-6)


def test_every_output_counts_the_same_whatever_its_size() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 64, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.small(x), 1000 * self.large(x)

    images = uniform_images()[:1]
    model = quantized(trace(Heads(), (8, 8)))
    MaeCalibrator().calibrate(model, images)
    noise = noise_of(model, images, "mae", scales_of(model))
    with torch.no_grad():
        actual = model(images[0])
        with model.float_mode():
            reference = model(images[0])
    ratios = [typical(a - b, b) for a, b in zip(actual, reference, strict=True)]
    assert noise == pytest.approx(sum(ratios) / 2, rel=1e-6)


def test_an_output_that_is_always_zero_does_not_hide_the_others() -> None:
    class DeadHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.alive = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)
            self.dead = nn.Conv2d(8, 4, 1, bias=False)
            nn.init.zeros_(self.dead.weight)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.conv(x).relu()
            return self.dead(y), self.alive(y)

    torch.manual_seed(0)
    model = quantized(trace(DeadHead(), (8, 8)))
    result = BestBaselineCalibrator().calibrate(model, images_with_outliers())
    assert all(math.isfinite(snr) for snr in result.compared.values())
    assert result.method != "minmax"


def test_decibels_by_hand() -> None:
    assert decibel(0.001) == pytest.approx(30.0)
    assert decibel(0.0) == math.inf


def test_scales_are_copied_into_the_quantizers_and_not_shared_with_them() -> None:
    model = two_convolutions()
    scales = {name: torch.tensor(0.5) for name in model.activation_quantizers}
    set_activation_scales(model, scales)
    next(iter(scales.values())).fill_(9.0)
    assert [float(q.scale) for q in model.activation_quantizers.values()] == [0.5, 0.5]


def test_its_key_is_best() -> None:
    assert isinstance(create_calibrator("best"), BestBaselineCalibrator)


def test_the_float_weights_are_left_alone() -> None:
    model = two_convolutions()
    before = {layer: model.weight_of(layer).clone() for layer in model.weight_quantizers}
    BestBaselineCalibrator().calibrate(model, uniform_images())
    assert all(torch.equal(model.weight_of(layer), weight) for layer, weight in before.items())
    for layer, quantizer in model.weight_quantizers.items():
        assert int(quantizer.quantize(model.weight_of(layer)).abs().max()) == 127


def test_scales_are_compared_with_the_given_reference() -> None:
    model, images = two_convolutions(), uniform_images()[:1]
    reference = float_copy(model)
    MaeCalibrator().calibrate(model, images)
    scales = scales_of(model)
    good = compare_scales(model, images, {"mae": scales}, reference)["mae"]
    doubled = compare_scales(
        model, images, {"mae": scales}, lambda x: tuple(2 * y for y in reference(x))
    )["mae"]
    assert good < 0.01
    assert doubled == pytest.approx(0.25, abs=0.02)
