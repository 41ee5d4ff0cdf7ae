from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.transformers.gptq import gptq_round
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


def error(found: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((found - weight) @ inputs.T).square().sum())


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_on_correlated_inputs_products_are_much_closer_than_by_nearest_rounding(bits: int) -> None:
    (weight, quantizer), inputs = layer(bits), correlated()
    found = gptq_round(weight, quantizer, inputs)
    assert error(found, weight, inputs) < 0.3 * error(quantizer(weight), weight, inputs)
    assert not torch.equal(found, quantizer(weight))


def test_it_holds_for_unseen_inputs_of_the_same_kind() -> None:
    (weight, quantizer), inputs = layer(4), correlated(600)
    found = gptq_round(weight, quantizer, inputs[:300])
    unseen = inputs[300:]
    assert error(found, weight, unseen) < 0.5 * error(quantizer(weight), weight, unseen)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_what_is_found_lies_on_the_grid(bits: int) -> None:
    weight, quantizer = layer(bits)
    found = gptq_round(weight, quantizer, correlated())
    assert torch.equal(quantizer(found), found)
    codes = found / quantizer.scale[:, None] + quantizer.zero_point[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.min() > -0.01
    assert codes.max() < 2**bits - 0.99


def test_a_weight_that_lies_on_the_grid_is_reproduced() -> None:
    weight, quantizer = layer(4)
    whole = quantizer(weight)
    assert torch.equal(gptq_round(whole, quantizer, correlated()), whole)


def test_uncorrelated_inputs_leave_nearest_rounding() -> None:
    weight, quantizer = layer(4)
    inputs = torch.eye(IN) * torch.linspace(1, 5, IN)
    assert torch.equal(gptq_round(weight, quantizer, inputs), quantizer(weight))


def test_a_second_column_makes_up_for_the_first_by_hand() -> None:
    """Both inputs are equal: 0.4 + 0.4 is 1 and 0, not 0 and 0."""
    quantizer = TensorQuantizer(IntegerGrid.for_weights(4), 1, axis=0)
    inputs = torch.ones(5, 2)
    found = gptq_round(torch.tensor([[0.4, 0.4]]), quantizer, inputs)
    assert found.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("inputs", [torch.zeros(6, IN), correlated(3)], ids=["dead", "few"])
def test_inputs_that_determine_nothing_do_no_harm(inputs: torch.Tensor) -> None:
    weight, quantizer = layer(4)
    found = gptq_round(weight, quantizer, inputs)
    assert torch.isfinite(found).all()
    assert error(found, weight, inputs) <= error(quantizer(weight), weight, inputs)


def test_tokens_of_images_are_rows() -> None:
    (weight, quantizer), inputs = layer(4), correlated()
    before = weight.clone()
    found = gptq_round(weight, quantizer, inputs.reshape(10, 5, 6, IN))
    assert torch.equal(found, gptq_round(weight, quantizer, inputs))
    assert torch.equal(weight, before)
