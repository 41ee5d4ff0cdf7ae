"""Draw README's chart, light and dark, from docs/results/headline.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 600, 112, 72, 60, 84, 18
LIGHT = {
    "text": "#1f2328", "faint": "#656d76", "grid": "#d0d7de", "minmax": "#c9d1d9", "other": "#8c959f",
    "reptrt": "#2f81f7",
}  # fmt: skip
DARK = LIGHT | {
    "text": "#e6edf3", "faint": "#8d96a0", "grid": "#30363d", "minmax": "#3d444d", "other": "#6e7681",
}  # fmt: skip


def draw(facts: dict[str, Any], colors: dict[str, str]) -> str:
    """The chart as an SVG of figures alone: a bar for each way, a dashed line where FP32 is."""
    height = TOP + ROW * len(facts["networks"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(describe(facts))}"'
        ' font-family="-apple-system,Segoe UI,Helvetica,Arial,sans-serif" font-size="14">',
        *_legend(facts, colors),
    ]
    for index, network in enumerate(facts["networks"]):
        parts += _network(network, TOP + index * ROW, colors)
    return "\n".join([*parts, "</svg>", ""])


def describe(facts: dict[str, Any]) -> str:
    """What the chart shows, in words."""
    rows = [
        f"{one['name']} ({one['what']}): FP32 {one['fp32']:.1f}, reptrt {one['reptrt']:.1f}, best other"
        f" {one['other']:.1f}" + (f", max {one['minmax']:.1f}" if one["minmax"] else "")
        for one in facts["networks"]
    ]
    return f"{facts['title']}, percent. {'; '.join(rows)}"


def _legend(facts: dict[str, Any], colors: dict[str, str]) -> Iterable[str]:
    yield (
        f'<text x="0" y="16" font-size="16" font-weight="600" fill="{colors["text"]}">'
        f"{escape(facts['title'])}, %</text>"
    )
    x = 0
    for key in ("reptrt", "other", "minmax"):
        text = facts["legend"][key]
        yield f'<rect x="{x}" y="32" width="12" height="12" rx="2" fill="{colors[key]}"/>'
        yield f'<text x="{x + 18}" y="43" fill="{colors["faint"]}">{escape(text)}</text>'
        x += 34 + 6.5 * len(text)
    yield f'<line x1="{x + 6}" x2="{x + 6}" y1="30" y2="46" stroke="{colors["text"]}" stroke-dasharray="3 3"/>'
    yield f'<text x="{x + 18}" y="43" fill="{colors["faint"]}">{escape(facts["legend"]["fp32"])}</text>'


def _network(network: dict[str, Any], top: float, colors: dict[str, str]) -> Iterable[str]:
    def along(percent: float) -> float:
        return round((WIDTH - LEFT - RIGHT) * percent / 100, 1)

    yield f'<text x="0" y="{top + 24}" font-weight="600" fill="{colors["text"]}">{escape(network["name"])}</text>'
    yield f'<text x="0" y="{top + 42}" fill="{colors["faint"]}">{escape(network["what"])}</text>'
    ways = [key for key in ("reptrt", "other", "minmax") if network[key] is not None]
    for line, key in enumerate(ways):
        y, value = top + 6 + line * (BAR + 3), network[key]
        weight = ' font-weight="600"' if key == "reptrt" else ""
        yield (
            f'<rect x="{LEFT}" y="{y}" width="{along(value)}" height="{BAR}" rx="2"'
            f' fill="{colors[key]}"/>'
        )
        yield (
            f'<text x="{LEFT + max(along(value), along(network["fp32"])) + 8}" y="{y + 14}"{weight}'
            f' fill="{colors["text" if key == "reptrt" else "faint"]}">{value:.1f}</text>'
        )
    yield (
        f'<text x="{WIDTH}" y="{top + 20}" text-anchor="end" fill="{colors["faint"]}">'
        f"FP32 {network['fp32']:.1f}</text>"
    )
    x, bottom = LEFT + along(network["fp32"]), top + 6 + len(ways) * (BAR + 3)
    yield (
        f'<line x1="{x}" x2="{x}" y1="{top + 2}" y2="{bottom}" stroke="{colors["text"]}"'
        ' stroke-dasharray="3 3"/>'
    )


def main() -> None:
    """Write docs/accuracy.svg and docs/accuracy-dark.svg."""
    facts = json.loads((DOCS / "results" / "headline.json").read_text())
    for name, colors in (("accuracy.svg", LIGHT), ("accuracy-dark.svg", DARK)):
        (DOCS / name).write_text(draw(facts, colors))


if __name__ == "__main__":
    main()
