import pytest

from reptrt.pipeline.report.axes import linear_axis, log_axis


def test_a_logarithmic_axis_spends_the_same_on_every_factor() -> None:
    axis = log_axis([3, 300])
    assert axis.ticks == [2, 5, 10, 20, 50, 100, 200, 500]
    per_decade = [axis.place(high) - axis.place(low) for low, high in ((2, 20), (50, 500))]
    assert per_decade == pytest.approx([41.7, 41.7], abs=0.01)
    assert (axis.place(2), axis.place(500)) == (0, 100)


def test_many_decades_have_lines_at_powers_of_ten_alone() -> None:
    assert log_axis([1e-5, 30]).ticks == [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10]


@pytest.mark.parametrize("value", [1.0, 5.0, 0.001, 0.0312, 999.0])
def test_one_value_has_an_axis_too(value: float) -> None:
    axis = log_axis([value])
    assert axis.low <= value <= axis.high
    assert axis.low < axis.high


@pytest.mark.parametrize(
    ("values", "ticks"),
    [((18.3, 79.0), [0, 20, 40, 60, 80]), ((76.2, 78.9), [76, 76.5, 77, 77.5, 78, 78.5, 79]),
     ((0.0, 0.0), [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]), ((-4.6, 30.0), [-10, 0, 10, 20, 30])],
)  # fmt: skip
def test_a_linear_axis_has_round_numbers(values: tuple[float, float], ticks: list[float]) -> None:
    axis = linear_axis(values, least=1.0)
    assert axis.ticks == ticks
    assert (axis.low, axis.high) == (ticks[0], ticks[-1])


def test_a_value_outside_is_kept_on_the_axis() -> None:
    axis = linear_axis([0, 10], least=1.0)
    assert [axis.place(value) for value in (-5, 5, 50)] == [0, 50, 100]
