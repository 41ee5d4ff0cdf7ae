"""What a layer's quantizers see: standard library only, as the report that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from reptrt.engines.foreign.ranges import Amount, Count, NotEmpty, Percent


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: Annotated[tuple[Count, ...], NotEmpty()]


@dataclass(frozen=True)
class FloatWeights:
    """Weights before they were quantized, in steps of the grid of their channel.

    Attributes:
        values: in steps.
        end: the largest code, so the grid is -end to end.
        clipped: percent of the weights that lie outside.
    """

    values: Histogram
    end: Amount
    clipped: Percent


@dataclass(frozen=True)
class LayerHistograms:
    """One quantized layer.

    Attributes:
        activation: what the quantizer in front of the layer reads, on a few calibration images.
        step: of its grid; where it has one per channel, the largest.
        grid: smallest and largest value that it holds.
        clipped: percent of the values that lie outside.
        weights: codes of the weights, -128 to 127.
        start: `grid` before it was learned; None where nothing was.
        bits: of the weights, and of the activations; None where a file brought its own scales.
        float_weights: None where the float network has no weight that became these codes: channels were divided.
    """

    activation: Histogram
    step: Amount
    grid: tuple[float, float]
    clipped: Percent
    weights: Histogram
    start: tuple[float, float] | None = None
    bits: tuple[int, int] | None = None
    float_weights: FloatWeights | None = None
