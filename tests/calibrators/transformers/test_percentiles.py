from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.quantizers import IntegerGrid, LogSqrt2Quantizer, TensorQuantizer
from reptrt.calibrators.transformers.percentiles import (
    PERCENTILES,
    percentile_ranges,
    set_best_amax,
    set_best_range,
)


def spread(count: int = 60_000, seed: int = 0) -> torch.Tensor:
    """Values around 0.5, none of them an outlier."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.5


def with_tail(share: float, size: float) -> torch.Tensor:
    """The same, `share` of them multiplied by `size`."""
    x = spread()
    x[: round(share * len(x))] *= size
    return x


TAILS = {"none": with_tail(0.0, 1), "few": with_tail(0.0005, 60.0), "many": with_tail(0.0008, 3.0)}


def error_of(x: torch.Tensor, low: float, high: float, bits: int) -> float:
    """Mean squared error of RepQ-ViT's quantizer of this range."""
    scale = (high - low) / (2**bits - 1)
    zero_point = round(-low / scale)
    codes = torch.clamp(torch.round(x / scale) + zero_point, 0, 2**bits - 1)
    return float(((codes - zero_point) * scale - x).square().mean())


def winner(x: torch.Tensor, bits: int) -> int:
    """Index of the best of `PERCENTILES` for `x` > 0, by trying all."""
    errors = [error_of(x, 0.0, float(x.double().quantile(p)), bits) for p in PERCENTILES]
    return errors.index(min(errors))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tail", TAILS)
def test_the_percentile_of_least_squared_error_wins(tail: str, bits: int) -> None:
    x = TAILS[tail]
    quantizer = TensorQuantizer(IntegerGrid.unsigned(bits))
    set_best_range(quantizer, x)
    best = float(x.double().quantile(PERCENTILES[winner(x, bits)]))
    assert float(quantizer.scale) == pytest.approx(best / (2**bits - 1), rel=1e-5)
    assert quantizer.zero_point == 0


def test_none_of_the_three_always_wins() -> None:
    assert {winner(x, bits) for x in TAILS.values() for bits in (8, 4)} >= {0, 2}


def test_percentiles_are_those_of_the_tensor_and_of_each_channel() -> None:
    x = torch.randn(4, 500, 3, generator=torch.Generator().manual_seed(0))
    for axis, rows in ((None, x.reshape(1, -1)), (-1, x.flatten(0, 1).T)):
        for (low, high), p in zip(percentile_ranges(x, axis), PERCENTILES, strict=True):
            for found, probability in ((low, 1 - p), (high, p)):
                assert found.shape == (() if axis is None else (3,))
                expected = rows.double().quantile(probability, dim=1).float()
                torch.testing.assert_close(found.reshape(-1), expected, rtol=1e-5, atol=0)


def test_every_channel_has_a_percentile_of_its_own() -> None:
    x = torch.stack([*TAILS.values(), -5 * TAILS["few"]])
    channels = TensorQuantizer(IntegerGrid.unsigned(4), num_channels=4, axis=0)
    set_best_range(channels, x)
    for index, row in enumerate(x):
        alone = TensorQuantizer(IntegerGrid.unsigned(4), num_channels=1, axis=0)
        set_best_range(alone, row[None])
        assert torch.equal(channels.scale[index], alone.scale[0])
        assert torch.equal(channels.zero_point[index], alone.zero_point[0])


def test_a_tensors_range_holds_0_and_a_channels_need_not() -> None:
    x = spread() + 2
    tensor = TensorQuantizer(IntegerGrid.unsigned(6))
    channels = TensorQuantizer(IntegerGrid.unsigned(6), num_channels=1, axis=0)
    for sign in (1, -1):
        set_best_range(tensor, sign * x)
        set_best_range(channels, sign * x[None])
        low, high = (float(multiple) for multiple in tensor.multiples)
        assert low <= 0 <= high
        low, high = (float(multiple) for multiple in channels.multiples)
        assert low > 0 or high < 0
        assert float(channels.scale) == pytest.approx(float(tensor.scale) * 1 / 3.5, rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_symmetric_range_ends_at_the_end_that_is_further_from_0(sign: int) -> None:
    x = sign * torch.linspace(-1, 3, 1001)
    quantizer = TensorQuantizer(IntegerGrid.for_activations(8, signed=True))
    set_best_amax(quantizer, x)
    assert float(quantizer.scale) == pytest.approx(3 / 127, rel=0.01)
    assert quantizer.zero_point == 0


def test_a_logarithmic_grid_begins_at_the_highest_percentile_that_is_best() -> None:
    x = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) ** 3
    quantizer = LogSqrt2Quantizer(IntegerGrid.unsigned(4))
    set_best_amax(quantizer, x)
    found, errors = float((quantizer(x) - x).square().mean()), []
    for p in PERCENTILES:
        quantizer.set_amax(x.quantile(p))
        errors.append(float((quantizer(x) - x).square().mean()))
    assert found == pytest.approx(min(errors), rel=1e-4)


def test_a_dead_tensor_and_a_dead_channel_keep_a_positive_step() -> None:
    tensor = TensorQuantizer(IntegerGrid.unsigned(8))
    channels = TensorQuantizer(IntegerGrid.unsigned(8), num_channels=2, axis=-1)
    x = torch.stack([torch.zeros(100), torch.linspace(-1, 2, 100)], dim=1)
    set_best_range(tensor, torch.zeros(100))
    set_best_range(channels, x)
    assert tensor.scale == 1.0
    assert (channels.scale > 0).all()
    assert not channels(x)[:, 0].any()


def test_more_than_16_million_elements() -> None:
    x = torch.zeros(2**24 + 1)
    x[::2] = 1.0
    assert [(float(low), float(high)) for low, high in percentile_ranges(x, None)] == [(0, 1)] * 3
