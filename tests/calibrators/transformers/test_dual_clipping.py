from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.transformers.dual_clipping import learn_thresholds
from reptrt.calibrators.transformers.percentiles import set_best_range

CHANNELS = 12


def tokens(seed: int = 0) -> torch.Tensor:
    """[16, 40, 12] values whose channels have sizes and centres of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 40, CHANNELS, generator=generator)
    return x * torch.logspace(-1, 1, CHANNELS) + torch.linspace(-5, 5, CHANNELS)


def weight(rows: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, CHANNELS, generator=generator) / torch.logspace(-1, 1, CHANNELS)


def started(bits: int, x: torch.Tensor) -> TensorQuantizer:
    channels = TensorQuantizer(IntegerGrid.unsigned(bits), CHANNELS, axis=-1)
    set_best_range(channels, x)
    return channels


def learned(
    bits: int, x: torch.Tensor, weights: Sequence[torch.Tensor], seed: int = 0
) -> TensorQuantizer:
    channels = started(bits, x)
    learn_thresholds(channels, x, weights, torch.Generator().manual_seed(seed))
    return channels


def error(channels: TensorQuantizer, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> float:
    """What the linears that read `x` see of its quantization."""
    return float(((channels(x) - x) @ torch.cat(list(weights)).T).square().mean())


@pytest.mark.parametrize("bits", [3, 4])
def test_what_the_linears_see_of_the_error_shrinks(bits: int) -> None:
    x, weights = tokens(), [weight()]
    before = error(started(bits, x), x, weights)
    assert error(learned(bits, x, weights), x, weights) < 0.95 * before


def test_it_shrinks_on_unseen_tokens_too() -> None:
    x, weights, unseen = tokens(), [weight()], tokens(seed=9)
    before = error(started(4, x), unseen, weights)
    assert error(learned(4, x, weights), unseen, weights) < before


def test_all_readers_count() -> None:
    x, both = tokens(), [weight(2), 30 * weight(8)]
    assert error(learned(4, x, both), x, both) < error(learned(4, x, both[:1]), x, both)


def test_a_channel_that_nobody_weighs_stays_where_it_was() -> None:
    x, ignored = tokens(), weight()
    ignored[:, 3] = 0
    before, after = started(4, x), learned(4, x, [ignored])
    moved = (after.scale - before.scale).abs() > 1e-5 * before.scale
    assert moved.tolist() == [index != 3 for index in range(CHANNELS)]


def test_low_and_high_move_apart_from_each_other() -> None:
    x = tokens()
    before, after = started(4, x), learned(4, x, [weight()])
    starts = torch.stack([multiple * before.scale for multiple in before.multiples])
    ends = torch.stack([multiple * after.scale for multiple in after.multiples])
    moves = (ends - starts) / (starts[1] - starts[0])
    assert (moves[0].abs() > 0.02).any()
    assert (moves[1].abs() > 0.02).any()
    assert (moves[0] + moves[1]).abs().max() > 0.02  # no symmetric clipping


def test_the_result_is_a_grid_of_whole_codes() -> None:
    after = learned(4, tokens(), [weight()])
    assert torch.equal(after.zero_point, after.zero_point.round())
    assert (after.scale > 0).all()
    assert not after.scale.requires_grad
    values = after(tokens(seed=3)).flatten(0, 1)
    assert max(len(column.unique()) for column in values.T) <= 16


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    x, weights = tokens(), [weight()]
    first, again, other = (learned(4, x, weights, seed) for seed in (0, 0, 1))
    assert torch.equal(first.scale, again.scale)
    assert torch.equal(first.zero_point, again.zero_point)
    assert not torch.equal(first.scale, other.scale)


def test_a_learned_weight_gets_no_gradient() -> None:
    parameter = torch.nn.Parameter(weight())
    learned(4, tokens(), [parameter])
    assert parameter.grad is None
