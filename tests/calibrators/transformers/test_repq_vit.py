from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.histogram.methods import channel_amax
from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.quantizers import (
    Fp8Quantizer,
    IntegerGrid,
    LogSqrt2Quantizer,
    TensorQuantizer,
)
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.transformers.attention_channels import find_keys, find_value_sites
from reptrt.calibrators.transformers.percentiles import set_best_range
from reptrt.calibrators.transformers.repq_vit import LOPSIDED
from reptrt.calibrators.transformers.scale_reparam import find_norm_sites
from tests.reconstructing import all_values, differing, state_of
from tests.tiny_networks import NETWORKS, quantized, smooth_images, traced
from tests.tiny_transformers import float_output, images_for, transformer

aten = torch.ops.aten

WEIGHTED = {aten.linear.default, aten.conv2d.default}
every_network = pytest.mark.parametrize("name", ["vit", "swin-padded"])


def fitted(
    name: str, bits: tuple[int, int], softmax: Softmax = "float", method: str = "repq-vit"
) -> QuantizedModel:
    model = transformer(name, bits, softmax)
    create_calibrator(method).calibrate(model, list(images_for(name, 8).split([3, 5])))
    return model


def snr(model: QuantizedModel, name: str) -> float:
    """At the outputs on unseen images, in dB, against the network of before."""
    images = images_for(name, 16, seed=7)
    expected = float_output(transformer(name), images)
    with torch.no_grad():
        noise = (model(images)[0] - expected).square().sum()
    return float(10 * torch.log10(expected.square().sum() / noise))


@pytest.mark.parametrize("bits", [6, 4])
@every_network
def test_below_8_bits_every_other_range_is_the_best_of_what_reaches_it(
    name: str, bits: int
) -> None:
    """All quantizers before it are active; weights come after their LayerNorm."""
    model = fitted(name, (bits, bits), "uniform")
    values = all_values(model, images_for(name, 8))
    sites = {**find_norm_sites(model), **find_value_sites(model)}
    calls = [node for node in values if is_activation_call(node) and node not in sites]
    assert len(calls) >= 10
    for call in calls:
        expected, x = TensorQuantizer(IntegerGrid.unsigned(bits)), values[call.args[0]]
        set_best_range(expected, x)
        quantizer = model.quantizer_at(call)
        assert quantizer.grid == expected.grid
        # Values' rows were divided since: a largest value, which is a tie, falls otherwise, and codes behind it.
        error, least = (float((q(x) - x).square().mean()) for q in (quantizer, expected))
        assert error < 1.05 * least
    for layer, quantizer in model.weight_quantizers.items():
        weight = model.weight_of(layer)
        expected = TensorQuantizer(IntegerGrid.unsigned(bits), len(weight), axis=0)
        set_best_range(expected, weight)
        assert quantizer.grid == expected.grid
        torch.testing.assert_close(
            quantizer.scale, expected.scale
        )  # values' rows were divided since
        assert torch.equal(quantizer.zero_point, expected.zero_point)


@every_network
def test_at_8_bits_only_lopsided_inputs_of_linears_have_an_offset(name: str) -> None:
    model = fitted(name, (8, 8), "uniform")
    sites = {**find_norm_sites(model), **find_value_sites(model)}
    centred = find_keys(model)
    values = all_values(model, images_for(name, 8))
    shifted = 0
    for call in filter(is_activation_call, values):
        quantizer, x = model.quantizer_at(call), values[call.args[0]]
        if call in sites or call in centred:
            assert (quantizer.grid, quantizer.zero_point) == (IntegerGrid.unsigned(8), 128)
        elif quantizer.offset:
            shifted += 1
            assert quantizer.grid == IntegerGrid.unsigned(8)
            assert abs(quantizer.offset) > LOPSIDED
            assert {user.target for user in call.users} <= WEIGHTED
            shorter, longer = sorted([float(-x.min()), float(x.max())])
            assert shorter < longer / 2.5
        else:
            assert quantizer.grid.quant_max == 127
            assert quantizer.zero_point == 0
    assert shifted == sum(node.target is aten.gelu.default for node in values) > 0
    for layer, quantizer in model.weight_quantizers.items():
        amax = channel_amax(model.weight_of(layer))
        assert quantizer.grid == IntegerGrid.for_weights(8)
        assert not quantizer.zero_point.any()
        torch.testing.assert_close(quantizer.scale, amax / 127)


@pytest.mark.parametrize(
    ("bits", "softmax"),
    [
        *((8, "uniform"), (6, "uniform"), (4, "uniform"), (8, "log2"), (4, "log2")),
        *((8, "fp8"), (4, "fp8")),
    ],
)
@every_network
def test_no_tensor_has_more_values_than_codes_and_all_fit_int8(
    name: str, bits: int, softmax: Softmax
) -> None:
    model = fitted(name, (bits, bits), softmax)
    values = all_values(model, images_for(name, 8, seed=3))
    for call in filter(is_activation_call, values):
        quantizer = model.quantizer_at(call)
        count = len(values[call].unique())
        if isinstance(quantizer, LogSqrt2Quantizer):
            assert count <= 2**bits + 1  # 0 is none of its codes
            continue
        if isinstance(quantizer, Fp8Quantizer):
            assert count <= 253  # of both signs, and one 0
            continue
        assert count <= 2**bits
        low, high = (int(m) - quantizer.offset for m in quantizer.multiples)
        assert -128 <= low < high <= 127
    for layer, quantizer in model.weight_quantizers.items():
        rows = quantizer(model.weight_of(layer)).flatten(1)
        assert max(len(row.unique()) for row in rows) <= 2**bits
        low, high = quantizer.multiples
        assert low.min() >= -128
        assert high.max() <= 127


@pytest.mark.parametrize("bits", [(8, 8), (6, 6), (4, 4)])
@every_network
def test_it_is_closer_to_float_than_one_scale_from_the_start(
    name: str, bits: tuple[int, int]
) -> None:
    ours = snr(fitted(name, bits), name)
    others = [snr(fitted(name, bits, method=method), name) for method in ("minmax", "percentile")]
    assert ours > max(others) + (3 if bits[0] < 8 else 0.5)


def test_two_runs_give_the_same_bits_and_batches_do_not_matter() -> None:
    first, images = fitted("vit", (6, 6), "uniform"), images_for("vit", 8)
    assert differing(state_of(first), state_of(fitted("vit", (6, 6), "uniform"))) == set()
    whole = transformer("vit", (6, 6), "uniform")
    create_calibrator("repq-vit").calibrate(whole, [images])
    for name, quantizer in whole.activation_quantizers.items():
        torch.testing.assert_close(quantizer.scale, first.activation_quantizers[name].scale)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_is_calibrated(name: str, bits: tuple[int, int]) -> None:
    model, images = quantized(traced(name), bits), smooth_images(16, seed=1)
    with model.float_mode(), torch.no_grad():
        expected = model(images)
    result = create_calibrator("repq-vit").calibrate(model, [images])
    assert result.method == "repq-vit"
    sites = len(find_norm_sites(model))
    assert result.notes["Reparameterized LayerNorms"] == str(sites)
    assert (sites > 0) == (name in ("vit", "swin"))
    with torch.no_grad():
        found = model(images)
    least = 15 if bits == (8, 8) else 3
    for a, b in zip(found, expected, strict=True):
        assert float(10 * torch.log10(b.square().sum() / (a - b).square().sum())) > least
    for quantizer in [*model.activation_quantizers.values(), *model.weight_quantizers.values()]:
        assert (quantizer.scale != 1).all()


def test_a_layer_with_8_bits_in_a_network_of_fewer_is_symmetric() -> None:
    model = transformer("vit", (4, 4))
    layer = "head"
    model.weight_quantizers[layer].grid = IntegerGrid.for_weights(8)
    create_calibrator("repq-vit").calibrate(model, [images_for("vit", 8)])
    assert model.weight_quantizers[layer].grid == IntegerGrid.for_weights(8)
    assert not model.weight_quantizers[layer].zero_point.any()
    assert model.weight_quantizers["blocks.0.mlp.fc2"].zero_point.any()


@pytest.mark.parametrize(
    ("bits", "softmax", "moved"),
    [(8, "float", "0"), (6, "float", "2"), (8, "uniform", "2"), (4, "uniform", "2")],
)
def test_the_projections_input_is_of_channels_below_8_bits_and_quantized_values_always(
    bits: int, softmax: Softmax, moved: str
) -> None:
    model = transformer("vit", (bits, bits), softmax)
    result = create_calibrator("repq-vit").calibrate(model, [images_for("vit", 4)])
    assert result.notes["Reparameterized attentions"] == moved


def test_progress_rises_to_its_end() -> None:
    seen: list[tuple[int, int]] = []
    create_calibrator("repq-vit").calibrate(
        transformer("vit"),
        [images_for("vit", 2)],
        lambda _, done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))
