import math

import pytest

from reptrt.pipeline.report.number_format import (
    duration,
    file_size,
    milliseconds,
    number,
    ratio,
    significant,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "∞ dB"), (-math.inf, "−∞ dB"), (-0.04, "0.0 dB"),
     (-1.25, "−1.2 dB"), (12345.6, "12 345.6 dB")],
)  # fmt: skip
def test_numbers_have_a_unit_only_when_they_are_known(value: float | None, text: str) -> None:
    assert number(value, 1, "dB").replace("\u00a0", " ") == text


def test_a_sign_is_written_when_asked_for() -> None:
    assert [number(value, 1, sign=True) for value in (0.5, 0.0, -0.5)] == ["+0.5", "0.0", "−0.5"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4149, "0.41 s"), (12.34, "12.3 s"), (59.96, "1 min 00 s"), (200, "3 min 20 s"),
     (3599.6, "1 h 00 min"), (3720, "1 h 02 min"), (None, "–")],
)  # fmt: skip
def test_durations_change_their_unit_with_their_length(seconds: float | None, text: str) -> None:
    assert duration(seconds).replace("\u00a0", " ") == text


def test_latencies_have_three_digits() -> None:
    texts = [milliseconds(value)[:-3] for value in (0.1234, 1.234, 12.34, 123.4)]
    assert texts == ["0.123", "1.23", "12.3", "123"]


def test_sizes_are_powers_of_ten() -> None:
    texts = [file_size(value).replace("\u00a0", " ") for value in (900, 8_412_345, 345e6)]
    assert texts == ["0.9 kB", "8.4 MB", "345 MB"]


def test_ratios_say_in_which_direction() -> None:
    pairs = [(12.0, 6.0), (6.0, 12.0), (6.0, 6.001), (0.0, 1.0), (None, 1.0)]
    texts = [ratio(before, after, "faster", "slower") for before, after in pairs]
    assert texts == ["2.00× faster", "2.00× slower", "the same", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0024312, "0.00243"), (0.05, "0.05"), (200.0, "200"), (1.234e-7, "1.23e-07"), (None, "–"),
     (math.nan, "–"), (math.inf, "∞")],
)  # fmt: skip
def test_losses_keep_the_digits_that_count(value: float | None, text: str) -> None:
    assert significant(value) == text
