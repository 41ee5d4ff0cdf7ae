"""Intervals against values from the papers, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from reptrt.pipeline.validation.intervals import (
    Z,
    chance_agreement,
    images_for,
    paired_drop_interval,
    resampled_intervals,
    share_interval,
)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # R. G. Newcombe, Stat. Med. 17 (1998) 857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_share_has_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    assert share_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


def score(lost: int, gained: int, count: int, drop: float) -> float:
    """Tango's statistic, with the likeliest rates under `drop` found by trying them all."""
    rates = np.linspace(
        max(0, -drop) + 1e-6, (1 - drop) / 2 - 1e-6, 200_001
    )  # of images that are gained
    same = 1 - 2 * rates - drop
    likelihood = (
        lost * np.log(rates + drop)
        + gained * np.log(rates)
        + (count - lost - gained) * np.log(same)
    )
    rate = rates[likelihood.argmax()]
    variance = count * (2 * rate + drop - drop**2)
    return float((lost - gained - count * drop) / np.sqrt(variance))


@pytest.mark.parametrize(("lost", "gained", "count"), [(12, 2, 50), (7, 5, 200), (30, 31, 744)])
def test_a_paired_drop_has_the_ends_that_a_score_test_just_does_not_reject(
    lost: int, gained: int, count: int
) -> None:
    low, high = paired_drop_interval(lost, gained, count)
    assert score(lost, gained, count, high) == pytest.approx(-Z, abs=1e-3)
    assert score(gained, lost, count, -low) == pytest.approx(-Z, abs=1e-3)
    assert low < (lost - gained) / count < high


def test_where_two_models_never_differ_the_interval_says_how_little_few_images_tell() -> None:
    low, high = paired_drop_interval(0, 0, 5)
    assert high == pytest.approx(Z**2 / (5 + Z**2))
    assert low == pytest.approx(-high)
    assert paired_drop_interval(0, 0, 380).high == pytest.approx(0.01, abs=1e-4)


def test_a_gain_is_a_drop_the_other_way() -> None:
    low, high = paired_drop_interval(3, 9, 100)
    assert (-high, -low) == pytest.approx(paired_drop_interval(9, 3, 100))


def test_the_upper_end_covers_the_true_drop_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    draws = random.multinomial(150, [0.06, 0.03, 0.91], size=2000)
    covered = [paired_drop_interval(lost, gained, 150).high >= 0.03 for lost, gained, _ in draws]
    assert 0.96 <= np.mean(covered) <= 0.99


def test_chance_is_what_a_constant_answer_and_shuffled_labels_reach() -> None:
    labels = np.repeat([3, 5, 900], [6, 3, 1])
    assert chance_agreement(np.full(10, 3), labels) == pytest.approx(0.6)
    assert chance_agreement(labels, labels) == pytest.approx(0.36 + 0.09 + 0.01)
    assert chance_agreement(np.full(10, 4), labels) == 0


def test_a_resampled_mean_has_the_width_of_its_standard_error_every_time() -> None:
    values = np.random.default_rng(2).normal(5.0, 2.0, 400)

    def measure(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values[drawn].mean(axis=1), np.full(len(drawn), 7.0)

    mean, constant = resampled_intervals(measure, 400)
    assert mean.high - mean.low == pytest.approx(2 * Z * 2.0 / 20, rel=0.15)
    assert constant == (7.0, 7.0)
    assert [mean, constant] == resampled_intervals(measure, 400)


def test_the_images_that_would_decide_are_the_fewest_within_a_percent() -> None:
    needed = images_for(lambda count: paired_drop_interval(0, 0, count).high < 0.01, 5)
    assert needed == pytest.approx(Z**2 * 99, rel=0.02)
    assert images_for(lambda count: False, 5) is None
    assert images_for(lambda count: True, 5) == 5
