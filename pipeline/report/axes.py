"""Axes of charts: their range, their grid lines, and the position of a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_MAX_TICKS = 8


class Axis(NamedTuple):
    """Values from `low` to `high`, with lines at `ticks`, equally spaced or by their logarithm."""

    low: float
    high: float
    ticks: list[float]
    logarithmic: bool

    def place(self, value: float) -> float:
        """Position of `value` in percent of the axis, 0 at its low end, kept on the axis."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 3)


def linear_axis(values: Sequence[float], least: float) -> Axis:
    """Span at least `least` around `values` (one or more), from one line to another."""
    spare = max(0.0, least - (max(values) - min(values))) / 2
    low, high = min(values) - spare, max(values) + spare
    finest = (high - low) / (_MAX_TICKS - 2)
    step = next(step for step in _round_numbers(finest, 10 * finest) if step >= finest)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [round(index * step, 9) for index in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks, logarithmic=False)


def log_axis(values: Sequence[float]) -> Axis:
    """Span `values` (one or more, > 0) from 1, 2 or 5 times a power of ten to another."""
    numbers = _round_numbers(min(values), 10 * max(values))
    low = max(number for number in numbers if number <= min(values))
    high = min(number for number in numbers if number >= max(values) and number > low)
    ticks = [number for number in numbers if low <= number <= high]
    if len(ticks) > _MAX_TICKS:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1.0")]
    return Axis(low, high, ticks, logarithmic=True)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times every power of ten, from the power below `low` to beyond `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
