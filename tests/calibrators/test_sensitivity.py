"""Partial quantization on a network that has one tensor no grid holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from reptrt.calibrators.feed import Feed, shake
from reptrt.calibrators.histogram.best import compare_baselines
from reptrt.calibrators.histogram.methods import MseCalibrator, observe_activations, scale_weights
from reptrt.calibrators.output_noise import decibel, output_noise, worst_noise
from reptrt.calibrators.quantized.half_rest import HalfRest
from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, insert_quantizers
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.sensitivity import (
    SENSITIVE,
    Aim,
    compared_images,
    find_sensitive_layers,
    shaken_images,
)
from reptrt.models.graph import trace
from tests.tiny_networks import SIZE, plain, randomize, smooth_images


class OneWideChannel(nn.Module):
    """Three depthwise layers; the second one reads a tensor with a channel a thousand times wider."""

    def __init__(self, through_concat: bool = False) -> None:
        super().__init__()
        self.through_concat = through_concat
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.sensitive = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)
        randomize(self)
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.sensitive.weight[0] /= 1000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.hardswish(self.first(x))
        if self.through_concat:
            hidden = torch.cat(hidden.chunk(2, dim=1), dim=1)
        return self.last(nn.functional.hardswish(self.sensitive(hidden)))


class TwoWideChannels(nn.Module):
    """Depthwise layers that read a channel a thousand and one a hundred times wider than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.worst = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)
        randomize(self)
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.worst.weight[0] /= 1000
            self.worst.weight[1] *= 100
            self.second.weight[1] /= 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.worst, self.second):
            x = nn.functional.hardswish(layer(x))
        return self.last(x)


def network(
    sensitive: dict[str, float] | None = None, through_concat: bool = False
) -> QuantizedModel:
    return quantized(OneWideChannel(through_concat), sensitive or {})


def quantized(module: nn.Module, sensitive: dict[str, float]) -> QuantizedModel:
    graph_module = trace(module.eval(), (SIZE, SIZE))
    return insert_quantizers(
        graph_module,
        place_quantizers(graph_module.graph, left_float=dict.fromkeys(sensitive, SENSITIVE)),
    )


IMAGES = [smooth_images(16, seed=seed) for seed in (1, 2)]


def snr_when_calibrated(model: QuantizedModel) -> float:
    reference = float_copy(model)
    MseCalibrator().calibrate(model, IMAGES)
    return decibel(output_noise(model, IMAGES, reference))


def test_the_layer_behind_the_wide_channel_is_found_and_no_other() -> None:
    found = find_sensitive_layers(network(), IMAGES, Aim(25.0)).layers
    assert list(found) == ["sensitive"]
    assert found["sensitive"] < 25
    assert snr_when_calibrated(network()) < 25
    assert snr_when_calibrated(network(found)) > 25


def test_a_layer_that_reads_the_tensor_through_a_concat_is_found_too() -> None:
    found = find_sensitive_layers(network(through_concat=True), IMAGES, Aim(25.0)).layers
    assert list(found) == ["sensitive"]
    assert snr_when_calibrated(network(found, through_concat=True)) > 25


def test_no_more_layers_are_left_out_than_the_outputs_need() -> None:
    model = quantized(TwoWideChannels(), {})
    assert list(find_sensitive_layers(model, IMAGES[:1], Aim(15.0)).layers) == ["worst"]
    quantizers = (*model.activation_quantizers.values(), *model.weight_quantizers.values())
    assert all(quantizer.enabled for quantizer in quantizers)


def set_best_scales(model: QuantizedModel, images: Sequence[torch.Tensor]) -> None:
    """Those of `best`, whose corrected biases are for all layers in INT8."""
    scale_weights(model)
    observers = observe_activations(model, images)
    compare_baselines(model, observers, images, float_copy(model))


def test_every_layer_is_measured_alone_and_all_that_is_left_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        found = find_sensitive_layers(
            quantized(TwoWideChannels(), {}), IMAGES[:1], Aim(90.0)
        ).layers
    assert list(found) == ["worst", "second"]
    model = quantized(TwoWideChannels(), {})
    reference = float_copy(model)
    set_best_scales(model, IMAGES[:1])
    read = {point.edges[0][1]: point.name for point in model.placement.points}
    quantizers = {
        layer: model.activation_quantizers[read[node]]
        for node, layer in model.placement.layers.items()
    }
    for layer, snr in found.items():
        with model.float_mode():
            quantizers[layer].enabled = model.weight_quantizers[layer].enabled = True
            alone = decibel(output_noise(model, IMAGES[:1], reference))
        assert snr == pytest.approx(alone, abs=0.1)
    for layer in found:
        quantizers[layer].enabled = model.weight_quantizers[layer].enabled = False
    rest = decibel(output_noise(model, IMAGES[:1], reference))
    assert f"2 activations left out: {rest:.1f} dB" in caplog.text


def test_the_best_baseline_decides_whether_anything_is_left_out() -> None:
    model = quantized(TwoWideChannels(), {})
    reference = float_copy(model)
    set_best_scales(model, IMAGES[:1])
    best = decibel(output_noise(model, IMAGES[:1], reference))
    found = [
        find_sensitive_layers(
            quantized(TwoWideChannels(), {}), IMAGES[:1], Aim(best + margin)
        ).layers
        for margin in (-0.1, 0.1)
    ]
    assert found[0] == {}
    assert found[1] != {}


def test_a_layer_that_saves_little_is_left_float_before_one_that_saves_much() -> None:
    model = quantized(TwoWideChannels(), {})
    savings = {"first": 10.0, "worst": 1e6, "second": 1.0, "last": 10.0}
    found = find_sensitive_layers(model, IMAGES[:1], Aim(90.0), savings=savings).layers
    assert next(iter(found)) == "second"


@pytest.mark.parametrize(("side", "count"), [(64, 16), (320, 16), (448, 8), (640, 4), (1280, 4)])
def test_of_large_images_fewer_are_compared(side: int, count: int) -> None:
    for size in (20, 3):
        images = torch.zeros(20, 1, side, side).split(size)
        assert sum(map(len, compared_images(network(), images))) == count


def test_where_the_batch_is_fixed_all_of_it_is_compared_and_estimated() -> None:
    graph_module = trace(randomize(plain()), (SIZE, SIZE), batch_size=20)
    model = insert_quantizers(graph_module, place_quantizers(graph_module.graph))
    images = smooth_images(20, seed=1)
    assert find_sensitive_layers(model, [images], Aim(90.0)).layers
    assert [len(batch) for batch in compared_images(model, [images, images])] == [20]


def test_where_the_batch_is_one_several_are_compared_and_estimated() -> None:
    graph_module = trace(randomize(plain()), (SIZE, SIZE), batch_size=1)
    model = insert_quantizers(graph_module, place_quantizers(graph_module.graph))
    images = smooth_images(20, seed=1).split(1)
    assert len(compared_images(model, images)) == 16
    assert find_sensitive_layers(model, images, Aim(90.0)).layers


def test_nothing_is_left_out_where_the_outputs_are_close_enough() -> None:
    assert find_sensitive_layers(network(), IMAGES, Aim(1.0)).layers == {}


def test_at_most_half_of_the_activations_are_left_out_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = find_sensitive_layers(network(), IMAGES, Aim(90.0)).layers
    assert list(found) == ["sensitive"]
    assert "of the 90.0 dB asked for with 1 of 3 activations in float" in caplog.text


def test_a_bound_that_is_stated_takes_as_many_as_it_needs() -> None:
    found = find_sensitive_layers(network(), IMAGES, Aim(90.0, most=1.0))
    assert len(found.layers) == 3
    assert found.snr_db is None  # nothing is quantized
    assert found.int8_snr_db is not None


def test_progress_fills_one_bar() -> None:
    seen: list[tuple[str, int, int]] = []
    find_sensitive_layers(network(), IMAGES, Aim(25.0), lambda *step: seen.append(step))
    assert {name for name, _, _ in seen} == {"sensitivity"}
    done = [step / total for _, step, total in seen]
    assert done == sorted(done)
    assert done[-1] == 1


def test_placement_says_why_a_sensitive_layer_is_float() -> None:
    model = network({"sensitive": 12.3})
    assert list(model.placement.layers.values()) == ["first", "last"]
    assert model.placement.float_layers["sensitive"] == SENSITIVE


class WideShortcut(nn.Module):
    """A residual block whose shortcut has a channel a thousand times wider than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)
        randomize(self)
        with torch.no_grad():
            self.shortcut.weight[0] *= 1000
            self.last.weight[:, 0] /= 1000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.first(x))
        branch = self.second(nn.functional.relu(self.branch(hidden)))
        return self.last(nn.functional.relu(self.shortcut(hidden) + branch))


def test_a_shortcut_that_costs_too_much_is_float_with_the_convolution_that_writes_it() -> None:
    model = quantized(WideShortcut(), {})
    skips = [point.name for point in model.placement.points if point.edges[0][1].startswith("add")]
    assert len(skips) == 1
    found = find_sensitive_layers(model, IMAGES, Aim(25.0)).layers
    assert "shortcut" in found
    placement = quantized(WideShortcut(), found).placement
    assert [point.name for point in placement.points if point.name in skips] == []


class CalmAndWide(nn.Module):
    """Two outputs: of a convolution that reads the image, and of one behind a wide channel."""

    def __init__(self) -> None:
        super().__init__()
        self.calm = nn.Conv2d(3, 4, 1)
        self.wide = OneWideChannel()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.calm(x), self.wide(x)


def test_the_worst_output_has_to_be_as_close_where_that_is_the_aim() -> None:
    model = quantized(CalmAndWide(), {})
    reference = float_copy(model)
    set_best_scales(model, IMAGES[:1])
    mean = decibel(output_noise(model, IMAGES[:1], reference))
    worst = decibel(worst_noise(model, IMAGES[:1], reference))
    assert worst < mean - 2
    between = (mean + worst) / 2
    fresh = [quantized(CalmAndWide(), {}) for _ in range(2)]
    assert find_sensitive_layers(fresh[0], IMAGES[:1], Aim(between)).layers == {}
    found = find_sensitive_layers(fresh[1], IMAGES[:1], Aim(between, of_worst=True))
    assert list(found.layers) == ["wide.sensitive"]
    assert found.snr_db is not None
    assert found.snr_db > between > (found.int8_snr_db or 0.0)


class FarFromZero(nn.Module):
    """Values near 2000, where numbers of FP16 are 1 or 2 apart, and near 0 again behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        randomize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) + 2000 - 2000)


def test_noise_is_measured_with_the_rest_in_fp16_where_the_engine_has_that() -> None:
    model = quantized(FarFromZero(), {})
    reference = float_copy(model)
    with model.float_mode():
        assert worst_noise(model, IMAGES[:1], reference) == 0
        assert 0.01 < worst_noise(HalfRest.of(model), IMAGES[:1], reference) < 1
    for half_rest in (False, True):
        aim = Aim(30.0, most=0.0, of_worst=True, half_rest=half_rest)
        found = find_sensitive_layers(quantized(FarFromZero(), {}), IMAGES[:1], aim)
        assert found.int8_snr_db is not None
        assert (found.int8_snr_db < 20) == half_rest


def test_what_fp16_does_not_hold_becomes_its_largest_value() -> None:
    model = quantized(OneWideChannel(), {})
    with torch.no_grad(), model.float_mode():
        model.graph_module.get_parameter("last.bias").fill_(1e6)
        (found,) = HalfRest.of(model)(IMAGES[0])
    assert float(found.max()) == 65504


def test_chance_is_asked_more_than_once() -> None:
    images = smooth_images(4, seed=1)
    first, second = shaken_images([images])
    moved = (first[0] - images).abs().max() / images.abs().max()
    assert 0 < moved < 1e-4
    assert not torch.equal(first[0], second[0])
    tokens = Feed((torch.arange(4), images), (True, True))
    assert torch.equal(shake(tokens, 0).tensors[0], tokens.tensors[0])


def test_a_bound_holds_whichever_code_chance_gives() -> None:
    model = network()
    reference = float_copy(model)
    found = find_sensitive_layers(model, IMAGES[:1], Aim(0.2, of_worst=True))
    images = compared_images(model, IMAGES[:1])
    draws = [images, *shaken_images(images)]
    noises = [worst_noise(model, draw, reference) for draw in draws]
    assert min(noises) < max(noises)
    assert found.int8_snr_db == pytest.approx(decibel(max(noises)))
