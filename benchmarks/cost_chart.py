"""Draw predicted against measured times of kernels and engines as an SVG of figures alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

Point = tuple[str, str, float, float]
"""Engine, class of kernel, predicted and measured microseconds."""

WIDTH, SIDE, MARGIN = 900, 380, 60
TICKS = (1, 10, 100, 1000)
LOW, HIGH = 1.0, 1000.0
COLORS = {
    "product": "#2b6cb0", "image product": "#805ad5", "depthwise": "#2f855a", "move": "#b7791f",
    "reformat": "#c53030", "image reformat": "#702459",
}  # fmt: skip
STYLE = "font-family:sans-serif;font-size:12px;fill:#222"


def draw_chart(
    points: Sequence[Point], engines: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Write the chart: kernels on the left, by class; engines that the fit never saw on the right."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {SIDE + 2 * MARGIN}" '
        f'style="{STYLE}"><rect width="100%" height="100%" fill="#fff"/>',
        *_kernels(points),
        *_engines(engines),
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n")


def _at(microseconds: float) -> float:
    """Pixels along an axis, logarithmic."""
    part = math.log(min(max(microseconds, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return round(part * SIDE, 1)


def _kernels(points: Sequence[Point]) -> Iterable[str]:
    left, bottom = MARGIN, MARGIN + SIDE
    yield f'<text x="{left}" y="24">Kernels, microseconds: measured (across), predicted (up); dashed: 30 % off</text>'
    for above, right, dash in ((1.0, 1.0, "none"), (1.3, 1.0, "4 4"), (1.0, 1.3, "4 4")):
        x1, y1 = left + _at(LOW * right), bottom - _at(LOW * above)
        x2, y2 = left + _at(HIGH / above), bottom - _at(HIGH / right)
        yield (
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#999" stroke-dasharray="{dash}"/>'
        )
    for tick in TICKS:
        yield f'<text x="{left + _at(tick) - 6}" y="{bottom + 18}">{tick}</text>'
        yield f'<text x="{left - 36}" y="{bottom - _at(tick) + 4}">{tick}</text>'
    yield f'<rect x="{left}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#222"/>'
    for _, work, predicted, measured in points:
        yield (
            f'<circle cx="{left + _at(measured)}" cy="{bottom - _at(predicted)}" r="3" '
            f'fill="{COLORS[work]}" fill-opacity="0.6"/>'
        )
    for row, (work, color) in enumerate(COLORS.items()):
        y = MARGIN + 18 + 16 * row
        yield f'<circle cx="{left + 14}" cy="{y - 4}" r="4" fill="{color}"/>'
        yield f'<text x="{left + 24}" y="{y}">{work}</text>'


def _engines(engines: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    left, longest = (
        MARGIN + SIDE + 60,
        max(max(row["predicted"], row["measured"]) for row in engines.values()),
    )
    width = WIDTH - left - 70
    yield f'<text x="{left}" y="24">Engines that the fit never saw, milliseconds</text>'
    for index, (name, row) in enumerate(engines.items()):
        top = MARGIN + index * SIDE / len(engines)
        yield f'<text x="{left}" y="{top + 14}">{escape(name)}</text>'
        for line, (key, color) in enumerate((("measured", "#222"), ("predicted", "#2b6cb0"))):
            y, length = top + 20 + 20 * line, round(width * row[key] / longest, 1)
            yield f'<rect x="{left}" y="{y}" width="{length}" height="14" fill="{color}"/>'
            yield f'<text x="{left + length + 6}" y="{y + 12}">{row[key]:.2f} {key}</text>'
