"""Where each tensor is clipped: by what its values do to the outputs, not by the values alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.histogram.best import baseline_scales
from reptrt.calibrators.histogram.by_tensor import LOWEST, scales_by_tensor
from reptrt.calibrators.histogram.methods import observe_activations, scale_weights
from reptrt.calibrators.output_noise import ActivationScales, compare_scales
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.models.graph import trace
from tests.tiny_networks import NETWORKS, quantized, smooth_images, traced

WIDE = 4.0


class TwoBranches(nn.Module):
    """Each branch has one channel of rare wide values, which the last layer reads in one branch only."""

    def __init__(self) -> None:
        super().__init__()
        self.unread, self.read = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            for layer in (self.unread, self.read):
                layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.unread.weight[2, 2] = 0.0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.unread(x.relu()), self.read(x.relu() + 0.0)


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(32, 3, 8, 8, generator=generator)
    found[:, 2] *= 0.01
    found[:, 2, 0, 0] = WIDE
    return found


def chosen(
    model: QuantizedModel, batches: list[torch.Tensor]
) -> tuple[dict[str, ActivationScales], ActivationScales]:
    scale_weights(model)
    scales = baseline_scales(model, observe_activations(model, batches))
    return scales, scales_by_tensor(model, batches, scales, "minmax")


def test_wide_values_are_clipped_where_no_output_depends_on_them_and_kept_where_one_does() -> None:
    model = quantized(trace(TwoBranches().eval(), (8, 8)))
    scales, found = chosen(model, [images()])
    by_layer = {
        layer: next(p.name for p in model.placement.points if p.edges[0][1] == node)
        for node, layer in model.placement.layers.items()
    }
    unread, read = (float(found[by_layer[name]]) for name in ("unread", "read"))
    assert unread < 1.3 / 127  # a step of scales above the end of the other channels
    assert read == pytest.approx(WIDE / 127, rel=0.05)
    assert float(scales["minmax"][by_layer["unread"]]) == pytest.approx(WIDE / 127, rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_scales_lie_between_those_of_the_baselines_or_below_and_come_again(name: str) -> None:
    model, batches = quantized(traced(name)), list(smooth_images(12, seed=0).split(4))
    scales, found = chosen(model, batches)
    before = {
        key: quantizer.scale.clone() for key, quantizer in model.activation_quantizers.items()
    }
    assert list(found) == list(model.activation_quantizers)
    for key, scale in found.items():
        known = [float(one[key]) for one in scales.values()]
        assert LOWEST * min(known) * 0.999 <= float(scale) <= max(known) * 1.001
    again = scales_by_tensor(model, batches, scales, "minmax")
    assert all(torch.equal(found[key], again[key]) for key in found)
    after = {key: quantizer.scale for key, quantizer in model.activation_quantizers.items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(one.enabled for one in model.activation_quantizers.values())


def test_a_graph_of_a_fixed_batch_has_its_scales_too() -> None:
    model, batches = (
        quantized(traced("plain", batch_size=4)),
        list(smooth_images(12, seed=0).split(4)),
    )
    scales, found = chosen(model, batches)
    noise = compare_scales(
        model, batches, {"minmax": scales["minmax"], "own": found}, float_copy(model)
    )
    assert noise["own"] < 2 * noise["minmax"]


class ClassNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).argmax(1)


def test_what_no_output_depends_on_smoothly_keeps_the_scale_of_the_best_baseline() -> None:
    model = quantized(trace(ClassNumbers().eval(), (8, 8)))
    scales, found = chosen(model, [smooth_images(4, seed=0, size=8)])
    assert all(torch.equal(found[name], scales["minmax"][name]) for name in found)
