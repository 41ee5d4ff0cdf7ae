from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.biases import round_biases
from tests.tiny_networks import NETWORKS, quantized, traced


def model_with_scales(name: str, activation: float, weight: float):
    model = quantized(traced(name))
    for quantizer in model.activation_quantizers.values():
        quantizer.scale.fill_(activation)
    for quantizer in model.weight_quantizers.values():
        quantizer.scale.fill_(weight)
    return model


def bias_of(model, layer: str) -> torch.Tensor:
    return model.graph_module.get_parameter(
        model.weight_paths[layer].removesuffix("weight") + "bias"
    )


def test_a_bias_becomes_the_nearest_multiple_of_input_scale_times_weight_scale() -> None:
    model = model_with_scales("plain", activation=0.5, weight=0.25)
    layer = next(iter(model.weight_quantizers))
    bias = bias_of(model, layer)
    bias.data[:4] = torch.tensor([0.05, 0.07, -0.2, 1.0])
    round_biases(model)
    assert bias[:4].tolist() == [0.0, 0.125, -0.25, 1.0]


@pytest.mark.parametrize("name", NETWORKS)
def test_rounding_twice_changes_nothing(name: str) -> None:
    model = model_with_scales(name, activation=0.01, weight=0.003)
    round_biases(model)
    once = {key: value.clone() for key, value in model.graph_module.state_dict().items()}
    round_biases(model)
    for key, value in model.graph_module.state_dict().items():
        torch.testing.assert_close(value, once[key], rtol=1e-6, atol=0)


def test_a_bias_of_a_float_layer_is_left_alone() -> None:
    model = model_with_scales("detector", activation=0.5, weight=0.5)
    quantized_biases = {
        path.removesuffix("weight") + "bias" for path in model.weight_paths.values()
    }
    before = {key: value.clone() for key, value in model.graph_module.state_dict().items()}
    round_biases(model)
    for key, value in model.graph_module.state_dict().items():
        if key not in quantized_biases:
            assert torch.equal(value, before[key]), key
