"""Partial quantization on a network that has one tensor no grid holds."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from calibrators.baselines import MseCalibrator
from calibrators.best_baseline import decibel
from calibrators.execution import float_copy
from calibrators.guard import output_noise
from calibrators.placement import place_quantizers
from calibrators.quantized_model import QuantizedModel, insert_quantizers
from calibrators.sensitivity import find_sensitive_layers
from models.graph import trace
from tests.tiny_networks import SIZE, randomize, smooth_images


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
            hidden = torch.cat(hidden.chunk(2, dim=1)[::-1], dim=1).roll(4, dims=1)
        return self.last(nn.functional.hardswish(self.sensitive(hidden)))


def network(
    sensitive: dict[str, float] | None = None, through_concat: bool = False
) -> QuantizedModel:
    graph_module = trace(OneWideChannel(through_concat).eval(), (SIZE, SIZE))
    placement = place_quantizers(graph_module.graph, sensitive=sensitive or {})
    return insert_quantizers(graph_module, placement)


IMAGES = [smooth_images(16, seed=seed) for seed in (1, 2)]


def snr_when_calibrated(model: QuantizedModel) -> float:
    reference = float_copy(model)
    MseCalibrator().calibrate(model, IMAGES)
    return decibel(output_noise(model, IMAGES, reference))


def test_the_layer_behind_the_wide_channel_is_found_and_no_other() -> None:
    found = find_sensitive_layers(network(), IMAGES, min_snr=25.0)
    assert list(found) == ["sensitive"]
    assert found["sensitive"] < 25
    assert snr_when_calibrated(network()) < 25
    assert snr_when_calibrated(network(found)) > 25


def test_a_layer_that_reads_the_tensor_through_a_concat_is_found_too() -> None:
    found = find_sensitive_layers(network(through_concat=True), IMAGES, min_snr=25.0)
    assert list(found) == ["sensitive"]
    assert snr_when_calibrated(network(found, through_concat=True)) > 25


def test_nothing_is_left_out_where_the_outputs_are_close_enough() -> None:
    assert find_sensitive_layers(network(), IMAGES, min_snr=1.0) == {}


def test_at_most_half_of_the_activations_are_left_out_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = find_sensitive_layers(network(), IMAGES, min_snr=90.0)
    assert list(found) == ["sensitive"]
    assert "of the 90.0 dB asked for with 1 of 3 activations in float" in caplog.text


def test_progress_fills_one_bar() -> None:
    seen: list[tuple[str, int, int]] = []
    find_sensitive_layers(network(), IMAGES, 25.0, lambda *step: seen.append(step))
    assert {name for name, _, _ in seen} == {"sensitivity"}
    done = [step / total for _, step, total in seen]
    assert done == sorted(done)
    assert done[-1] == 1


def test_placement_says_why_a_sensitive_layer_is_float() -> None:
    model = network({"sensitive": 12.3})
    assert list(model.placement.layers.values()) == ["first", "last"]
    assert "--min-snr 0" in model.placement.float_layers["sensitive"]
