from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.second_order.gptq import gptq_round
from reptrt.calibrators.transformers.percentiles import set_best_range

OUT, IN = 10, 24


def correlated(count: int = 300, rank: int = 4) -> torch.Tensor:
    """[count, IN] inputs that mostly lie in few directions."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, rank, generator=generator)
    mixing = torch.randn(rank, IN, generator=generator)
    return hidden @ mixing + 0.1 * torch.randn(count, IN, generator=generator)


def layer(bits: int) -> tuple[torch.Tensor, TensorQuantizer]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, IN, generator=generator)
    weight *= torch.logspace(-1, 1, OUT)[:, None]
    quantizer = TensorQuantizer(IntegerGrid.unsigned(bits), OUT, axis=0)
    set_best_range(quantizer, weight)
    return weight, quantizer


def covariance(inputs: torch.Tensor) -> torch.Tensor:
    """[1, IN, IN] of rows [count, IN], about 0."""
    return (inputs.double().T @ inputs.double() / len(inputs))[None]


def error(found: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((found - weight) @ inputs.T).square().sum())


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_on_correlated_inputs_products_are_much_closer_than_by_nearest_rounding(bits: int) -> None:
    (weight, quantizer), inputs = layer(bits), correlated()
    found = gptq_round(weight, quantizer, covariance(inputs)).values
    assert error(found, weight, inputs) < 0.3 * error(quantizer(weight), weight, inputs)
    assert not torch.equal(found, quantizer(weight))


def test_it_holds_for_unseen_inputs_of_the_same_kind() -> None:
    (weight, quantizer), inputs = layer(4), correlated(600)
    found = gptq_round(weight, quantizer, covariance(inputs[:300])).values
    unseen = inputs[300:]
    assert error(found, weight, unseen) < 0.5 * error(quantizer(weight), weight, unseen)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_what_is_found_lies_on_the_grid(bits: int) -> None:
    weight, quantizer = layer(bits)
    found = gptq_round(weight, quantizer, covariance(correlated())).values
    assert torch.equal(quantizer(found), found)
    codes = found / quantizer.scale[:, None] + quantizer.zero_point[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.min() > -0.01
    assert codes.max() < 2**bits - 0.99


def test_a_weight_that_lies_on_the_grid_is_reproduced() -> None:
    weight, quantizer = layer(4)
    whole = quantizer(weight)
    assert torch.equal(gptq_round(whole, quantizer, covariance(correlated())).values, whole)


def test_uncorrelated_inputs_leave_nearest_rounding() -> None:
    weight, quantizer = layer(4)
    inputs = torch.eye(IN) * torch.linspace(1, 5, IN)
    assert torch.equal(gptq_round(weight, quantizer, covariance(inputs)).values, quantizer(weight))


def test_a_second_column_makes_up_for_the_first_by_hand() -> None:
    """Both inputs are equal: 0.4 + 0.4 is 1 and 0, not 0 and 0."""
    quantizer = TensorQuantizer(IntegerGrid.for_weights(4), 1, axis=0)
    inputs = torch.ones(5, 2)
    found = gptq_round(torch.tensor([[0.4, 0.4]]), quantizer, covariance(inputs)).values
    assert found.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("inputs", [torch.zeros(6, IN), correlated(3)], ids=["dead", "few"])
def test_inputs_that_determine_nothing_do_no_harm(inputs: torch.Tensor) -> None:
    weight, quantizer = layer(4)
    found = gptq_round(weight, quantizer, covariance(inputs)).values
    assert torch.isfinite(found).all()
    assert error(found, weight, inputs) <= error(quantizer(weight), weight, inputs)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_latents_are_what_a_quantizer_makes_the_values_of(bits: int) -> None:
    weight, quantizer = layer(bits)
    before = weight.clone()
    found = gptq_round(weight, quantizer, covariance(correlated()))
    assert torch.equal(weight, before)
    assert torch.equal(quantizer(found.latents), found.values)
    assert not torch.equal(found.latents, found.values)
    low, high = ((m * quantizer.scale)[:, None] for m in quantizer.multiples)
    assert (found.latents >= low).all()
    assert (found.latents <= high).all()


def test_groups_are_layers_of_their_own() -> None:
    weight, quantizer = layer(4)
    hessians = torch.cat([covariance(correlated(300, rank)) for rank in (2, 5)])
    both = gptq_round(weight.view(OUT, IN, 1, 1), quantizer, hessians)
    half = OUT // 2
    for group, rows in enumerate((slice(half), slice(half, None))):
        own = TensorQuantizer(quantizer.grid, half, axis=0)
        own.scale.copy_(quantizer.scale[rows])
        own.zero_point.copy_(quantizer.zero_point[rows])
        alone = gptq_round(weight[rows], own, hessians[group][None])
        assert torch.equal(both.values[rows].flatten(1), alone.values)
