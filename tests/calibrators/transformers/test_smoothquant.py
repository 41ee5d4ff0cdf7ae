from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.fake_quant import fake_quantize
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.transformers.scale_reparam import find_norm_sites
from tests.reconstructing import float_values
from tests.tiny_networks import quantized, smooth_images, traced
from tests.tiny_transformers import float_output, images_for, transformer

every_network = pytest.mark.parametrize("name", ["vit", "swin-padded"])


def inputs_of_sites(model: QuantizedModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Float tensor behind every LayerNorm that is a site, [..., channels]."""
    values = float_values(model, images)
    return [values[call.args[0]] for call in find_norm_sites(model)]


def weights_of_sites(model: QuantizedModel) -> list[torch.Tensor]:
    layers = model.placement.layers
    return [
        model.weight_of(layers[site.readers[0].name]).detach().clone()
        for site in find_norm_sites(model).values()
    ]


@every_network
def test_the_float_network_stays_itself(name: str) -> None:
    model, images = transformer(name), images_for(name, 4).double()
    model.graph_module.double()
    before = float_output(model, images)
    result = create_calibrator("smoothquant").calibrate(model, list(images.split([1, 3])))
    change = (float_output(model, images) - before).abs().max() / before.abs().max()
    assert change < 1e-9
    assert result.method == "smoothquant"
    assert result.notes == {"Smoothed LayerNorms": str(len(find_norm_sites(model)))}


def test_activations_shrink_and_weights_grow_by_the_factor_of_equation_4() -> None:
    model, images = transformer("vit"), images_for("vit", 4).double()
    model.graph_module.double()
    inputs, weights = inputs_of_sites(model, images), weights_of_sites(model)
    create_calibrator("smoothquant").calibrate(model, list(images.split([1, 3])))
    after = zip(inputs_of_sites(model, images), weights_of_sites(model), strict=True)
    for x, w, (x_after, w_after) in zip(inputs, weights, after, strict=True):
        largest, weighed = x.abs().flatten(0, -2).amax(0), w.abs().amax(0)
        factor = (largest / weighed).sqrt()
        torch.testing.assert_close(x_after, x / factor)
        torch.testing.assert_close(w_after, w * factor)
        spread = x_after.abs().flatten(0, -2).amax(0)
        assert spread.max() / spread.min() < 0.3 * largest.max() / largest.min()


def test_a_channel_that_is_dead_or_that_nobody_weighs_stays_as_it_is() -> None:
    model, images = transformer("vit"), images_for("vit", 4)
    site = next(iter(find_norm_sites(model).values()))
    gain, shift = (model.graph_module.get_parameter(str(site.norm.args[i].target)) for i in (2, 3))
    weight = model.weight_of(model.placement.layers[site.readers[0].name])
    gain.data[3] = shift.data[3] = 0
    weight.data[:, 5] = 0
    before = gain.clone()
    create_calibrator("smoothquant").calibrate(model, [images])
    assert [bool(gain[i] == before[i]) for i in (3, 4, 5, 6)] == [True, False, True, False]
    assert torch.isfinite(model(images)[0]).all()


@every_network
def test_with_outliers_it_is_closer_to_float_than_min_max(name: str) -> None:
    images, noise = images_for(name, 8), {}
    expected = float_output(transformer(name), images)
    for method in ("smoothquant", "minmax"):
        model = transformer(name)
        create_calibrator(method).calibrate(model, [images])
        with torch.no_grad():
            noise[method] = float((model(images)[0] - expected).square().mean())
    assert noise["smoothquant"] < 0.9 * noise["minmax"]


@every_network
def test_all_scales_are_min_max_ones_of_the_smoothed_network(name: str) -> None:
    model, images = transformer(name), images_for(name, 4)
    create_calibrator("smoothquant").calibrate(model, [images])
    for x, call in zip(inputs_of_sites(model, images), find_norm_sites(model), strict=True):
        quantizer = model.quantizer_at(call)
        assert quantizer.zero_point == 0
        torch.testing.assert_close(quantizer.scale, x.abs().max() / 127, rtol=0.01, atol=0)
    for layer, quantizer in model.weight_quantizers.items():
        weight = model.weight_of(layer).flatten(1)
        scale = quantizer.scale[:, None]
        error = (fake_quantize(weight, scale, -127, 127) - weight).abs()
        assert (error <= 0.501 * scale).all()  # nothing is clipped


def test_a_network_without_sites_gets_min_max() -> None:
    smoothed, plain = quantized(traced("plain")), quantized(traced("plain"))
    for method, model in (("smoothquant", smoothed), ("minmax", plain)):
        create_calibrator(method).calibrate(model, [smooth_images(8, seed=1)])
    a, b = smoothed.graph_module.state_dict(), plain.graph_module.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
