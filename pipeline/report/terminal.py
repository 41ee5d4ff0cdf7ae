"""The report as a table for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from reptrt.engines.foreign.text import visible
from reptrt.engines.report_schema import Report
from reptrt.pipeline.report.budget_view import budget_lines
from reptrt.pipeline.report.charts import worst_layers
from reptrt.pipeline.report.number_format import decibel, duration, file_size
from reptrt.pipeline.report.precision import engine_precision
from reptrt.pipeline.report.summary import (
    SummaryRow,
    accuracy_rows,
    comparison_lines,
    deployment_note,
    engine_note,
    engine_rows,
    headline,
    latency_origin,
    latency_rows,
    nms_note,
    numerics_rows,
    sample_note,
    shortfall_note,
    total_time,
)

_MAX_OUTPUTS = 4
_GATE_STYLES = {"passed": "bold green", "failed": "bold red", "absent": "dim"}


def terminal_table(report: Report) -> Group:
    """Return a rich renderable of about 20 lines, made for 80 columns or more."""
    judged = headline(report)
    return Group(
        *[_text(note, "bold red") for note in [shortfall_note(report)] if note],
        *[_text(note, "bold") for note in [deployment_note(report)] if note],
        _table(report),
        _text(judged.sentence, "bold"),
        _text(judged.gate_text, _GATE_STYLES[judged.gate]),
        *[_text(line, "dim") for line in _footer(report)],
    )


def _table(report: Report) -> Table:
    precision = engine_precision(report)
    named = (report.model, report.calibrator, precision, report.target)
    parts = [part for part in named if part is not None]
    table = Table(
        title=_text(" · ".join(parts), "bold"),
        title_justify="left",
        pad_edge=False,
        box=None,
    )
    table.add_column("", style="dim", overflow="fold")
    table.add_column("float" if report.reference == "float" else "the file", justify="right")
    table.add_column(precision, justify="right", style="bold")
    table.add_column("change", justify="right")
    for row in _rows(report):
        table.add_row(*[_text(cell) for cell in row])
    return table


def _rows(report: Report) -> list[SummaryRow]:
    numerics = numerics_rows(report)
    hidden = len(numerics) - _MAX_OUTPUTS
    if hidden > 0:
        numerics = [*numerics[:_MAX_OUTPUTS], SummaryRow(f"… {hidden} more outputs", "", "", "")]
    return [
        *accuracy_rows(report),
        *numerics,
        *latency_rows(report),
        *engine_rows(report),
    ]


def _footer(report: Report) -> list[str]:
    """Say where the numbers come from; empty lines are left out."""
    worst = worst_layers(report.layers, count=1)
    images = sample_note(report.accuracy)
    memory = report.peak_rss_mb
    peak = "" if memory is None else f" and {file_size(memory * 1e6)} of memory"
    stages = ", ".join(
        f"{stage} {duration(value)}" for stage, value in (report.seconds or {}).items()
    )
    lines = [
        f"Evaluated on {images}" if images else "",
        *[f"Weakest layer: {row.layer}, {decibel(row.snr_db)}" for row in worst],
        *comparison_lines(report),
        *budget_lines(report),
        *_island_lines(report),
        f"NMS in the engine: {nms}" if (nms := nms_note(report.end2end)) else "",
        engine_note(report),
        latency_origin(report),
        f"Took {total_time(report)}{peak}: {stages}" if stages else "",
    ]
    return [line for line in lines if line]


def _text(content: str, style: str = "") -> Text:
    """Make text of untrusted `content`: no markup, and no terminal control sequences."""
    return Text(visible(content), style=style)


def _island_lines(report: Report) -> list[str]:
    """One line for each part of the user's file that stays as it is, in float."""
    islands = report.fusion.operator_islands if report.fusion else ()
    return [
        f"{'Tail' if island.role == 'tail' else 'Island'} in float: {', '.join(island.op_types)}"
        f" ({len(island.nodes)} of the file's nodes, {file_size(island.weight_bytes)} of constants):"
        f" {island.reason}"
        for island in islands
    ]
