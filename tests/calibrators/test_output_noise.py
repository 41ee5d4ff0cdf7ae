"""How noise at the outputs is averaged over images."""

from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.output_noise import mean_of_images


def power(*decibels: float) -> torch.Tensor:
    """[1, images], over a signal of 1."""
    return torch.tensor([[10 ** (-one / 10) for one in decibels]], dtype=torch.float64)


def test_noise_that_all_images_have_is_the_mean() -> None:
    assert mean_of_images(power(20, 20, 20), power(0, 0, 0)) == pytest.approx(0.01)


def test_a_few_lost_images_do_not_decide() -> None:
    signal = torch.ones(1, 50, dtype=torch.float64)
    few = mean_of_images(power(-20, *[30] * 49), signal)
    assert few < mean_of_images(power(*[20] * 50), signal)
    assert few > mean_of_images(power(*[30] * 50), signal)


def test_many_lost_images_do() -> None:
    signal = torch.ones(1, 50, dtype=torch.float64)
    assert mean_of_images(power(*[-10] * 10, *[40] * 40), signal) > mean_of_images(
        power(*[15] * 50), signal
    )


def test_noise_counts_beside_the_images_own_signal_and_beside_the_mean_of_small_ones() -> None:
    large = mean_of_images(power(0, 20), torch.tensor([[100.0, 1.0]], dtype=torch.float64))
    assert large < mean_of_images(power(0, 20), torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    small = mean_of_images(power(20, 20), torch.tensor([[0.0, 2.0]], dtype=torch.float64))
    assert small == pytest.approx(0.0075, rel=0.05)


def test_a_part_that_is_always_zero_says_nothing() -> None:
    noise, signal = torch.cat([power(20), power(0)]), torch.tensor([[1.0], [0.0]])
    assert mean_of_images(noise, signal) == pytest.approx(0.005)
