"""Geometry of one chart of labelled points: positions in percent of the plot, labels in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from reptrt.pipeline.report.axes import Axis, linear_axis, log_axis

HEIGHT = 340
# A label has room in a plot of the first width, and of the second, a phone's, where that leaves a choice. A wider
# page only moves the points apart.
_WIDTHS = (720, 270)
_LETTER, _LINE, _MARK = 7.5, 15, 6
_FEWEST_INSIDE = 3
_OUTLYING = 3.0
_LEAST_SPAN = 1.0
_SPARE = 0.05


class Sample(NamedTuple):
    """One point in data units: `x` > 0, `y`, its `label`, and `value`, which is `y` as text."""

    x: float
    y: float
    label: str
    value: str


class Label(NamedTuple):
    """Text beside a point, `dx` and `dy` pixels from it."""

    text: str
    anchor: Literal["start", "middle", "end"]
    dx: int
    dy: int


class Point(NamedTuple):
    """A sample at `x`, `y` percent from the left and the top; `is_below` if its value is below the axis."""

    x: float
    y: float
    is_below: bool
    label: Label
    sample: Sample


class Line(NamedTuple):
    """A grid line at `place` percent from the left or from the top, which stands for `value`."""

    place: float
    value: float


class ScatterChart(NamedTuple):
    """Points over a logarithmic x axis; `reference` is a level in percent from the top."""

    points: list[Point]
    columns: list[Line]
    rows: list[Line]
    reference: float | None
    height: int = HEIGHT

    @property
    def front(self) -> list[tuple[Point, Point]]:
        """Neighbours on the Pareto front: points that no other one beats in both, from left to right."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda one: (one.sample.x, -one.sample.y)):
            if not best or point.sample.y > best[-1].sample.y:
                best.append(point)
        return list(pairwise(best))


class _Box(NamedTuple):
    """A rectangle in pixels of the plot."""

    left: float
    top: float
    right: float
    bottom: float

    def hides(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


# Where a label may be, best first.
_PLACES: tuple[tuple[Literal["start", "middle", "end"], int, int], ...] = (
    ("start", 10, 4), ("end", -10, 4), ("middle", 0, -11), ("middle", 0, 21),
    ("start", 8, -8), ("start", 8, 17), ("end", -8, -8), ("end", -8, 17),
)  # fmt: skip


def scatter_chart(samples: Sequence[Sample], reference: float | None = None) -> ScatterChart:
    """Lay out one or more `samples`, and the level `reference` where there is one.

    A sample far below all others would stretch the axis until the others coincide: it is drawn at the
    lower edge, with its value beside it.
    """
    columns, rows = _axes(samples, reference)
    below = [sample.y < rows.low for sample in samples]
    texts = [
        f"{sample.label} {sample.value}" if is_below else sample.label
        for sample, is_below in zip(samples, below, strict=True)
    ]
    places = [(columns.place(sample.x), _from_top(rows, sample.y)) for sample in samples]
    level = None if reference is None else _from_top(rows, reference)
    labels = _place_labels(texts, places, level)
    return ScatterChart(
        [
            Point(*place, is_below, label, sample)
            for place, is_below, label, sample in zip(places, below, labels, samples, strict=True)
        ],
        [Line(columns.place(tick), tick) for tick in columns.ticks],
        [Line(_from_top(rows, tick), tick) for tick in rows.ticks],
        level,
    )


def _axes(samples: Sequence[Sample], reference: float | None) -> tuple[Axis, Axis]:
    """Logarithmic x and linear y, wider than the samples, so that no point lies on an edge."""
    times = [sample.x for sample in samples]
    levels = [sample.y for sample in samples]
    lowest = _lowest_inside(levels)
    inside = [level for level in levels if level >= lowest]
    inside += [] if reference is None else [reference]
    spare = _SPARE * (max(inside) - min(inside))
    return (
        log_axis([min(times) / (1 + _SPARE), max(times) * (1 + _SPARE)]),
        linear_axis([min(inside) - spare, max(inside) + spare], _LEAST_SPAN),
    )


def _from_top(rows: Axis, value: float) -> float:
    return round(100 - rows.place(value), 3)


def _lowest_inside(levels: Sequence[float]) -> float:
    """Lowest level that is no outlier: without an outlier the others span a third, or less."""
    ordered = sorted(levels)
    while len(ordered) > _FEWEST_INSIDE:
        rest = max(ordered[-1] - ordered[1], _LEAST_SPAN)
        if ordered[-1] - ordered[0] < _OUTLYING * rest:
            break
        ordered.pop(0)
    return ordered[0]


def _place_labels(
    texts: Sequence[str], places: Sequence[tuple[float, float]], level: float | None
) -> list[Label]:
    """Give every label the first place where it hides nothing, or the one where it hides least."""
    plots = [_Plot(width, places, level) for width in _WIDTHS]
    labels = []
    for index, text in enumerate(texts):
        here = [Label(text, *place) for place in _PLACES]
        best = min(here, key=lambda label: [plot.cost(index, label) for plot in plots])
        for plot in plots:
            plot.take(index, best)
        labels.append(best)
    return labels


class _Plot:
    """A plot of one width: what is drawn where, in pixels."""

    def __init__(
        self, width: int, places: Sequence[tuple[float, float]], level: float | None
    ) -> None:
        self._width = width
        self._pixels = [(x / 100 * width, y / 100 * HEIGHT) for x, y in places]
        self._taken = [_Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in self._pixels]
        if level is not None:
            line = level / 100 * HEIGHT
            self._taken.append(_Box(0, line - 1, width, line + 1))

    def cost(self, index: int, label: Label) -> int:
        """How much a label of the point at `index` hides there; leaving the plot costs as much."""
        box = _label_box(label, *self._pixels[index])
        outside = box.left < 0 or box.top < 0 or box.right > self._width or box.bottom > HEIGHT
        return outside + sum(box.hides(other) for other in self._taken)

    def take(self, index: int, label: Label) -> None:
        """Keep others from where the label is."""
        self._taken.append(_label_box(label, *self._pixels[index]))


def _label_box(label: Label, x: float, y: float) -> _Box:
    width = _LETTER * len(label.text)
    left = x + label.dx - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    bottom = y + label.dy + 3
    return _Box(left, bottom - _LINE, left + width, bottom)
