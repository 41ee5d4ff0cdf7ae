import math

import pytest

from reptrt.engines.report_schema import BlockLoss, LayerSnr
from reptrt.pipeline.report.charts import (
    bar_chart,
    dot_row,
    level_chart,
    loss_chart,
    snr_strip,
    worst_layers,
)


def layers(*values: float | None) -> list[LayerSnr]:
    return [LayerSnr(f"l{i}", "Conv", value) for i, value in enumerate(values)]


def test_bars_are_proportional_to_the_maximum() -> None:
    chart = bar_chart([("a", [("x", 5.0, ""), ("y", 20.0, "")]), ("b", [("x", 10.0, "")])])
    assert [[bar.width for bar in group.bars] for group in chart.groups] == [[25, 100], [50]]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -3.0, 0.0])
def test_a_value_that_cannot_be_drawn_has_no_bar(value: float | None) -> None:
    assert bar_chart([("a", [("x", value, "")])]).groups[0].bars[0].width == 0


def test_worst_layers_are_sorted_and_known() -> None:
    worst = worst_layers(layers(30, None, -2, math.nan, 0, math.inf, 12), count=3)
    assert [layer.snr_db for layer in worst] == [-2, 0, 12]


def test_columns_reach_from_zero_to_their_value() -> None:
    strip = snr_strip(layers(40, 10, None, -10), worst=())
    assert strip is not None
    assert [(column.y, column.height) for column in strip.columns] == [(0, 80), (60, 20), (80, 20)]
    assert [column.x for column in strip.columns] == [0, 25, 75]
    assert [(line.y, line.value) for line in strip.grid] == [
        (100, -10), (80, 0), (60, 10), (40, 20), (20, 30), (0, 40)
    ]  # fmt: skip


def test_layers_with_equal_content_are_marked_one_by_one() -> None:
    same = [*layers(5.0), *layers(5.0), *layers(9.0)]
    strip = snr_strip(same, worst_layers(same, count=1))
    assert strip is not None
    assert [column.kind for column in strip.columns] == ["worst", "other", "other"]


def test_an_exact_layer_fills_the_plot() -> None:
    strip = snr_strip(layers(math.inf, 15), worst=())
    assert strip is not None
    assert strip.columns[0][1:5] == (0, 40, 100, "exact")


def test_a_strip_needs_one_finite_value() -> None:
    assert snr_strip(layers(None, math.inf), worst=()) is None
    assert snr_strip([], worst=()) is None


def test_a_deep_range_keeps_few_grid_lines_and_zero_among_them() -> None:
    strip = snr_strip(layers(-45, 140), worst=())
    assert strip is not None
    assert len(strip.grid) <= 8
    assert 0 in [line.value for line in strip.grid]


def blocks(*losses: tuple[int, float | None, float | None]) -> list[BlockLoss]:
    return [
        BlockLoss(f"b{i}", stage, before, after, seconds=1.0)
        for i, (stage, before, after) in enumerate(losses)
    ]


def test_losses_fall_on_a_logarithmic_axis() -> None:
    chart = loss_chart(blocks((0, 1.0, 0.1), (0, 0.1, 0.01), (2, 0.1, 1.0)))
    assert chart is not None
    assert [(fall.before, fall.after) for fall in chart.falls] == [(0, 50), (50, 100), (50, 0)]
    assert [fall.kind for fall in chart.falls] == ["quantized", "quantized", "worst"]
    assert [(mark.x, mark.stage) for mark in chart.stages] == [(0, 0), (66.6667, 2)]
    assert [line.value for line in chart.grid] == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]


def test_a_block_without_a_positive_loss_leaves_its_place_empty() -> None:
    unknown = ((0, None, 1.0), (0, 1.0, 0.0), (0, math.nan, 1.0), (0, math.inf, 1.0))
    chart = loss_chart(blocks((0, 1.0, 0.5), *unknown))
    assert chart is not None
    assert [(fall.x, fall.width) for fall in chart.falls] == [(0, 16)]
    assert loss_chart(blocks(*unknown)) is None
    assert loss_chart([]) is None


def test_two_accuracies_stand_on_an_axis_around_them() -> None:
    row = dot_row("top-1", [("fp32", 80.0), ("quantized", 79.0)], (78.0, 82.0), "80 → 79")
    assert row is not None
    assert row.ends == (77, 83)  # the middle of 78 to 82, and 0.6 of their distance on either side
    assert [dot.x for dot in row.dots] == [50.0, 33.333]
    assert row.band == pytest.approx((16.667, 66.667), abs=0.002)


def test_an_axis_of_accuracy_stays_within_percent_and_has_a_width() -> None:
    row = dot_row("top-1", [("fp32", 100.0), ("quantized", 100.0)], None, "")
    assert row is not None
    assert (row.ends, row.band) == ((99, 100), None)
    assert dot_row("top-1", [("fp32", None), ("quantized", 1.0)], None, "") is None


def test_levels_lie_on_an_axis_around_them() -> None:
    chart = level_chart([("one", "quantized", 65.0, "65 dB"), ("two", "fp32", 60.0, "60 dB")], 6.0)
    low, high = chart.ticks[0][1], chart.ticks[-1][1]
    assert (low, high) == (59.0, 66.0)
    assert [level.x for level in chart.levels] == [
        pytest.approx(100 * 6 / 7, abs=1e-3),
        pytest.approx(100 / 7, abs=1e-3),
    ]
    assert [place for place, _ in chart.ticks][:2] == [0.0, pytest.approx(100 / 7, abs=1e-3)]
