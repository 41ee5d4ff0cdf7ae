from itertools import combinations

from reptrt.pipeline.report.scatter_chart import HEIGHT, Point, Sample, ScatterChart, scatter_chart

WIDTH = 720


def chart(*points: tuple[str, float, float], reference: float | None = None) -> ScatterChart:
    return scatter_chart([Sample(x, y, name, f"{y} %") for name, x, y in points], reference)


def text_box(point: Point, plot: int = WIDTH) -> tuple[float, float, float, float]:
    width = 7.0 * len(point.label.text)
    left = point.x / 100 * plot + point.label.dx
    left -= {"start": 0.0, "middle": width / 2, "end": width}[point.label.anchor]
    bottom = point.y / 100 * HEIGHT + point.label.dy
    return left, bottom - 11, left + width, bottom


def test_better_is_higher_and_slower_is_further_right() -> None:
    first, second = chart(("a", 10, 76), ("b", 100, 79)).points
    assert second.x > first.x
    assert second.y < first.y


def test_the_reference_lies_on_the_same_axis_as_the_points() -> None:
    drawn = chart(("a", 10, 76), ("b", 100, 79), reference=79)
    assert drawn.reference == drawn.points[1].y


def test_the_pareto_front_joins_what_no_other_point_beats_in_both() -> None:
    drawn = chart(
        ("slow", 9, 80), ("fast", 2, 70), ("beaten", 5, 69), ("even", 2, 65), ("mid", 4, 75)
    )
    joined = [(left.sample.label, right.sample.label) for left, right in drawn.front]
    assert joined == [("fast", "mid"), ("mid", "slow")]
    assert chart(("alone", 1, 70), ("worse", 2, 60)).front == []


def test_a_collapsed_calibrator_does_not_press_the_others_together() -> None:
    drawn = chart(("minmax", 9, 18.3), ("mae", 11, 76), ("brecq", 150, 77.9), ("repapq", 200, 79))
    assert [point.is_below for point in drawn.points] == [True, False, False, False]
    assert drawn.points[0].y == 100
    assert drawn.points[0].label.text == "minmax 18.3 %"
    assert drawn.rows[0].value == 75


def test_an_even_spread_is_drawn_whole() -> None:
    drawn = chart(("a", 1, 15), ("b", 2, 30), ("c", 3, 60), ("d", 4, 79))
    assert not any(point.is_below for point in drawn.points)


def test_labels_of_eight_calibrators_do_not_overlap() -> None:
    drawn = chart(
        ("minmax", 9, 18.3), ("percentile", 9.8, 71.9), ("entropy", 10.4, 74.1), ("mse", 10.1, 71),
        ("mae", 11, 76), ("brecq", 150, 77.9), ("qdrop", 160, 78.1), ("repapq", 200, 79),
        reference=78.9,
    )  # fmt: skip
    boxes = [text_box(point) for point in drawn.points]
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(left >= 0 and right <= WIDTH for left, _, right, _ in boxes)


def test_labels_stay_in_a_phones_plot_where_they_can() -> None:
    drawn = chart(
        ("percentile", 8.1, 76.86), ("mae", 12.8, 77.14), ("mse", 13.9, 75.71),
        ("minmax", 10.1, 73.43), ("repapq", 101.8, 78.86), reference=78.86,
    )  # fmt: skip
    for width in (WIDTH, 270):
        boxes = [text_box(point, width) for point in drawn.points]
        assert all(left >= 0 and right <= width for left, _, right, _ in boxes)
        for a, b in combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_one_point_is_a_chart() -> None:
    (point,) = chart(("mae", 11, 76)).points
    assert (point.y, point.is_below) == (50, False)
