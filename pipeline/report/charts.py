"""Geometry of the report's charts: lengths in percent of the plot, for SVG without a viewBox.

Percentages let a chart follow the width of the page while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, TypeGuard

from reptrt.engines.report_schema import BlockLoss, LayerSnr
from reptrt.pipeline.report.axes import linear_axis, log_axis

_DOT_ROOM = 0.6  # of what is shown, on either side of its middle
_LEAST_HALF = 1.0  # percent: an axis is never narrower than two
_SNR_STEP = 10.0  # dB between grid lines
_MAX_GRID_LINES = 7
_COLUMN_FILL = 0.8  # of the width a column has


class Bar(NamedTuple):
    """One horizontal bar; `width` in percent of the plot, `y` in pixels."""

    series: str
    label: str
    width: float
    y: int


class BarGroup(NamedTuple):
    """Bars that are compared with each other, under one label; `y` is its middle in pixels."""

    label: str
    y: float
    bars: list[Bar]


class BarChart(NamedTuple):
    """Grouped horizontal bars; `height` in pixels."""

    groups: list[BarGroup]
    height: int


class Dot(NamedTuple):
    """A value at `x` percent of the plot."""

    series: str
    x: float


class DotRow(NamedTuple):
    """Two values on an axis of their own; `band` is an interval, left and width in percent of the plot."""

    label: str
    dots: list[Dot]
    band: tuple[float, float] | None
    ends: tuple[float, float]
    text: str


class Level(NamedTuple):
    """A value at `x` percent of an axis that others share, on a line of its own."""

    label: str
    series: str
    x: float
    text: str


class LevelChart(NamedTuple):
    """Values on one axis that need not begin at zero; `ticks` are (percent from the left, value)."""

    levels: list[Level]
    ticks: list[tuple[float, float]]


class Column(NamedTuple):
    """The layer at `place` in the order of the graph; `x`, `y`, `width`, `height` in percent of the plot."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    place: int


class GridLine(NamedTuple):
    """One horizontal line at `y` percent from the top, which stands for `value`."""

    y: float
    value: float


class Strip(NamedTuple):
    """SNR of every layer in graph order."""

    columns: list[Column]
    grid: list[GridLine]


class Fall(NamedTuple):
    """The loss of one block before and after learning, as a line; positions in percent of the plot."""

    x: float
    width: float
    before: float
    after: float
    kind: str
    block: BlockLoss


class StageMark(NamedTuple):
    """Where a stage begins on the axis of blocks, in percent from the left."""

    x: float
    stage: int


class LossChart(NamedTuple):
    """Losses of every block in order, on a logarithmic axis."""

    falls: list[Fall]
    stages: list[StageMark]
    grid: list[GridLine]


def bar_chart(
    groups: Sequence[tuple[str, Sequence[tuple[str, float | None, str]]]],
    maximum: float | None = None,
    bar: int = 18,
    gap: int = 16,
) -> BarChart:
    """Lay out groups of (series, value, label) bars from zero.

    Args:
        groups: (label, bars) from the top down; a value that is no finite number has no bar.
        maximum: The value that fills the plot; by default the largest of all.
        bar: Height of a bar in pixels, 3 of them left free below it.
        gap: Pixels between groups.
    """
    values = [value for _, bars in groups for _, value, _ in bars if is_finite(value)]
    full = maximum or max((value for value in values if value > 0), default=1.0)
    placed, y = [], 0
    for label, bars in groups:
        top = y
        row = []
        for series, value, text in bars:
            width = 100 * value / full if is_finite(value) else 0.0
            row.append(Bar(series, text, round(min(max(width, 0.0), 100.0), 3), y))
            y += bar + 3
        placed.append(BarGroup(label, (top + y - 3) / 2, row))
        y += gap
    return BarChart(placed, max(y - gap, bar))


def level_chart(values: Sequence[tuple[str, str, float, str]], least: float) -> LevelChart:
    """Lay out (label, series, value, text), one or more, on an axis around the values.

    Args:
        values: from the top down, all finite.
        least: the axis spans at least so much.
    """
    axis = linear_axis([value for _, _, value, _ in values], least)
    levels = [
        Level(label, series, axis.place(value), text) for label, series, value, text in values
    ]
    return LevelChart(levels, [(axis.place(tick), tick) for tick in axis.ticks])


def dot_row(
    label: str,
    values: Sequence[tuple[str, float | None]],
    band: tuple[float, float] | None,
    text: str,
) -> DotRow | None:
    """Lay out percentages on an axis around them, so that their difference shows.

    Args:
        label: what they are.
        values: (series, percent).
        band: an interval that is drawn behind them, in percent.
        text: what stands beside them.

    Returns:
        None where a value is no number.
    """
    known = [(series, value) for series, value in values if is_finite(value)]
    if len(known) < len(values):
        return None
    inside = [value for _, value in known] + list(band or ())
    middle = (max(inside) + min(inside)) / 2
    half = max((max(inside) - min(inside)) * _DOT_ROOM, _LEAST_HALF)
    low, high = max(0.0, math.floor(middle - half)), min(100.0, math.ceil(middle + half))

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 3)

    dots = [Dot(series, place(value)) for series, value in known]
    drawn = None if band is None else (place(band[0]), round(place(band[1]) - place(band[0]), 3))
    return DotRow(label, dots, drawn, (low, high), text)


def worst_layers(layers: Sequence[LayerSnr], count: int) -> list[LayerSnr]:
    """Return the `count` layers of lowest SNR, worst first; layers without one are left out."""
    known = [layer for layer in layers if _is_number(layer.snr_db)]
    return sorted(known, key=lambda layer: layer.snr_db or 0.0)[:count]


def snr_strip(layers: Sequence[LayerSnr], worst: Sequence[LayerSnr]) -> Strip | None:
    """Draw one column per layer, marking the `worst`; None where no SNR is finite.

    An exact layer (infinite SNR) fills the plot; one that is unknown leaves its place empty.
    """
    values = [value for layer in layers if is_finite(value := layer.snr_db)]
    if not values:
        return None
    low = min(0.0, math.floor(min(values) / _SNR_STEP) * _SNR_STEP)
    high = max(_SNR_STEP, math.ceil(max(values) / _SNR_STEP) * _SNR_STEP)
    slot = 100 / len(layers)
    marked = {id(layer) for layer in worst}
    columns = [
        _column(layer, index, slot, (low, high), id(layer) in marked)
        for index, layer in enumerate(layers)
        if _is_number(layer.snr_db)
    ]
    return Strip(columns, _grid(low, high))


def loss_chart(blocks: Sequence[BlockLoss]) -> LossChart | None:
    """Draw each block's loss before and after learning; None where no block has two positive losses.

    The axis is logarithmic, so lines of equal length are equal ratios. A block whose losses are not
    both positive leaves its place empty.
    """
    drawn = [(index, block) for index, block in enumerate(blocks) if _has_losses(block)]
    if not drawn:
        return None
    axis = log_axis([loss for _, block in drawn for loss in _losses(block)])
    slot = 100 / len(blocks)
    falls = []
    for index, block in drawn:
        before, after = (100 - axis.place(loss) for loss in _losses(block))
        kind = "worst" if after < before else "quantized"
        place = (round(index * slot, 4), round(slot * _COLUMN_FILL, 4))
        falls.append(Fall(*place, round(before, 3), round(after, 3), kind, block))
    stages = [
        StageMark(round(next(members)[0] * slot, 4), stage)
        for stage, members in groupby(enumerate(blocks), key=lambda pair: pair[1].stage)
    ]
    return LossChart(
        falls, stages, [GridLine(round(100 - axis.place(tick), 3), tick) for tick in axis.ticks]
    )


def _losses(block: BlockLoss) -> tuple[float, float]:
    return block.before or 0.0, block.after or 0.0


def _has_losses(block: BlockLoss) -> bool:
    return all(is_finite(loss) and loss > 0 for loss in (block.before, block.after))


def _column(
    layer: LayerSnr, place: int, slot: float, limits: tuple[float, float], marked: bool
) -> Column:
    low, high = limits
    value = min(max(layer.snr_db or 0.0, low), high)
    top, bottom = (100 * (high - edge) / (high - low) for edge in (max(value, 0), min(value, 0)))
    kind = "worst" if marked else "other"
    if layer.snr_db == math.inf:
        kind = "exact"
    height, x, width = max(bottom - top, 0.5), place * slot, slot * _COLUMN_FILL
    return Column(round(x, 4), round(top, 3), round(width, 4), round(height, 3), kind, place)


def _grid(low: float, high: float) -> list[GridLine]:
    steps = round((high - low) / _SNR_STEP)
    stride = _SNR_STEP * math.ceil(steps / _MAX_GRID_LINES)
    first = math.ceil(low / stride)
    lines = [index * stride for index in range(first, math.floor(high / stride) + 1)]
    return [GridLine(round(100 * (high - value) / (high - low), 3), value) for value in lines]


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def is_finite(value: float | None) -> TypeGuard[float]:
    """Say whether `value` can be drawn to scale: neither None, NaN nor infinite."""
    return value is not None and math.isfinite(value)
