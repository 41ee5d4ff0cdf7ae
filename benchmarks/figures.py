"""Draw the figures of the explanations: docs/figures/*.svg."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html import escape

from benchmarks.result_tables import DOCS, load_tables

FLOAT, QUANTIZED, LEARNED, TEXT, FAINT = "#c9d1d9", "#2f81f7", "#e08700", "#1f2328", "#656d76"


def rectangle(x: float, y: float, width: float, height: float, fill: str, text: str = "") -> str:
    """A box with a label in its middle."""
    ink = "#ffffff" if fill == QUANTIZED else TEXT
    label = _text(x + width / 2, y + height / 2 + 4, text, ink, "middle") if text else ""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"/>{label}'


def _text(x: float, y: float, text: str, fill: str = TEXT, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str = FAINT, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}"'
        f' stroke-width="1.5"{dashes}/>'
    )


def page(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    """A figure on white."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(label)}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>", "",
    ])  # fmt: skip


def block_and_stage() -> str:
    """What RepAPQ compares while it learns the second of the three blocks of a stage."""
    left, step, wide, high = 130, 190, 140, 34
    places = [left + index * step for index in range(3)]
    parts = [_text(10, 62, "float network"), _text(10, 162, "being learned")]
    for index, x in enumerate(places):
        fills = (QUANTIZED, LEARNED, FLOAT)
        names = ("block 1, quantized", "block 2, learned", "block 3, in float")
        parts.append(rectangle(x, 40, wide, high, FLOAT, f"block {index + 1}"))
        parts.append(rectangle(x, 140, wide, high, fills[index], names[index]))
        if index:
            parts += [_line(x - step + wide, y, x, y) for y in (57, 157)]
    parts.append(_line(left, 24, places[2] + wide, 24))
    parts.append(_text(left, 17, "one stage: blocks whose outputs have one size", FAINT))
    for x, name in (
        (places[1] + wide + 25, "|block − float block|"),
        (places[2] + wide + 25, "λ |stage − float stage|"),
    ):
        parts += [
            _line(x, 57, x, 157, LEARNED, "4 3"),
            _text(x, 200, name, TEXT, "middle"),
            _line(x, 157, x, 186, LEARNED, "4 3"),
        ]
    label = "RepAPQ learns a block from its own distance to float and from that of its stage"
    return page(770, 215, label, parts)


def folded_channels() -> str:
    """Channels behind a LayerNorm on one step, before and after their ranges are folded into the layers."""
    heights = (12, 90, 20, 8, 46, 15, 30, 10)
    parts = []
    for left, title, drawn in (
        (20, "as trained: one step for all", heights),
        (340, "after the fold: the same codes for all", (90,) * len(heights)),
    ):
        parts.append(_text(left, 24, title))
        for index, height in enumerate(drawn):
            parts.append(rectangle(left + index * 30, 140 - height, 22, height, QUANTIZED))
        parts += [_line(left - 6, y, left + 240, y, FAINT, "2 4") for y in (50, 80, 110, 140)]
        parts.append(_text(left, 160, "range of each channel; dotted: steps", FAINT))
    for x, text in (
        (20, "LayerNorm: γ, β"), (150, "Linear: W, b"),
        (340, "LayerNorm: γ / r₁, (β + s r₂) / r₁"), (570, "Linear: W r₁, b − W (s r₂)"),
    ):  # fmt: skip
        parts.append(_text(x, 190, text))
    label = "RepQ-ViT folds the ranges of channels into LayerNorm and linear"
    return page(740, 205, label, parts)


def placements() -> str:
    """Predicted milliseconds in FP16, in INT8 where it pays, and in INT8 everywhere: docs/results/is-it-faster.json."""
    rows = load_tables()["is-it-faster"][0]["rows"]
    parts, scale, left = [], 680, 180
    legend = (("FP16", FLOAT), ("INT8 where it pays", QUANTIZED), ("INT8 everywhere", LEARNED))
    x = float(left)
    for name, fill in legend:
        parts += [rectangle(x, 12, 12, 12, fill), _text(x + 18, 22, name, FAINT)]
        x += 60 + 7 * len(name)
    for index, row in enumerate(rows):
        top = 44 + index * 66
        int8, fp16 = map(float, row[6].split(" / "))
        everywhere = float(re.split(", ", row[8])[1])
        parts.append(_text(10, top + 28, row[0]))
        for line, (value, (_, fill)) in enumerate(
            zip((fp16, int8, everywhere), legend, strict=True)
        ):
            y = top + line * 17
            parts.append(rectangle(left, y, value * scale, 14, fill))
            parts.append(_text(left + value * scale + 8, y + 12, f"{value:.3f} ms", FAINT))
    label = (
        "Predicted milliseconds of one image in FP16, in INT8 where it pays, and in INT8 everywhere"
    )
    return page(700, 44 + len(rows) * 66, label, parts)


FIGURES: dict[str, Callable[[], str]] = {
    "repapq": block_and_stage, "repq-vit": folded_channels, "placement": placements
}  # fmt: skip


def main() -> None:
    """Write docs/figures."""
    for name, draw in FIGURES.items():
        (DOCS / "figures" / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
