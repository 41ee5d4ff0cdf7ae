"""The mean of every channel is the float network's again, layer behind layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.correct_biases import correct_biases, own_biases
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.output_noise import decibel, output_noise
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.models.graph import trace
from tests.reconstructing import all_values
from tests.tiny_networks import SIZE, quantized, randomize, smooth_images, traced

COARSE = (4, 8)
IMAGES = smooth_images(16, seed=0)


def calibrated(model: QuantizedModel, images: torch.Tensor) -> QuantizedModel:
    MinMaxCalibrator().calibrate(model, [images])
    return model


def image_weights(model: QuantizedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every layer with a bias of its own: images count less where its float outputs are large."""
    found = {}
    with model.float_mode():
        values = all_values(model, images)
    for node in own_biases(model):
        powers = values[node].reshape(len(images), -1).square().mean(1)
        weights = 1 / powers.maximum(powers.mean())
        found[node.name] = weights / weights.sum()
    return found


def means(
    model: QuantizedModel, images: torch.Tensor, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Of every channel of every layer with a bias of its own."""
    values = all_values(model, images)
    linear = torch.ops.aten.linear.default
    found = {}
    for node in own_biases(model):
        rows = values[node].movedim(-1 if node.target is linear else 1, -1)
        of_images = rows.reshape(len(images), -1, rows.shape[-1]).mean(1)
        found[node.name] = weights[node.name] @ of_images
    return found


@pytest.mark.parametrize("size", [16, 3])
@pytest.mark.parametrize(
    "name", ["plain", "reparameterized", "detector", "residual", "vit", "swin"]
)
def test_every_layer_has_the_means_of_float_however_images_are_batched(
    name: str, size: int
) -> None:
    images = IMAGES
    model = calibrated(quantized(traced(name), COARSE), images)
    weights = image_weights(model, images)
    with model.float_mode():
        expected = means(model, images, weights)
    assert len(expected) > 1
    before = means(model, images, weights)
    assert any(not torch.allclose(before[key], expected[key], atol=1e-3) for key in expected)
    correct_biases(model, images.split(size))
    found = means(model, images, weights)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3)


def test_coarse_weights_in_front_of_a_pooling_cost_less_on_other_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    model = calibrated(quantized(trace(randomize(net), (SIZE, SIZE)), COARSE), IMAGES)
    reference, others = float_copy(model), [smooth_images(16, seed=1)]
    before = decibel(output_noise(model, others, reference))
    correct_biases(model, [IMAGES])
    assert decibel(output_noise(model, others, reference)) > before + 3


class Twice(nn.Module):
    """A layer that is called twice, and two layers that share a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.other = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.other.bias = self.one.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.one(self.twice(self.twice(x).relu())).relu())


def test_a_bias_that_several_layers_read_stays_as_it_is() -> None:
    model = calibrated(quantized(trace(Twice().eval(), (SIZE, SIZE)), COARSE), IMAGES)
    before = {name: value.clone() for name, value in model.graph_module.named_parameters()}
    correct_biases(model, [IMAGES])
    after = dict(model.graph_module.named_parameters())
    assert own_biases(model) == {}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_graph_of_a_fixed_batch_is_corrected() -> None:
    model, images = quantized(traced("plain", batch_size=1), COARSE), IMAGES.split(1)
    MinMaxCalibrator().calibrate(model, images)
    reference = float_copy(model)
    before = output_noise(model, images, reference)
    correct_biases(model, images)
    assert output_noise(model, images, reference) < before / 2


def test_one_image_like_no_other_does_not_decide() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model = quantized(trace(net.eval(), (SIZE, SIZE)))
    others, wide = IMAGES[1:], 100 * IMAGES[:1]  # which is clipped
    calibrated(model, others)
    reference = float_copy(model)
    correct_biases(model, [torch.cat([wide, others])])
    assert decibel(output_noise(model, [others], reference)) > 7  # -10 if all images count the same
