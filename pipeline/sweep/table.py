"""What a sweep found: a row for each cell, as CSV, Parquet and one page."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.foreign.text import visible
from reptrt.engines.report_schema import Report
from reptrt.pipeline.report import number_format, summary
from reptrt.pipeline.report.charts import is_finite
from reptrt.pipeline.report.page import write_page
from reptrt.pipeline.report.scatter_chart import Sample, ScatterChart, scatter_chart
from reptrt.pipeline.sweep.cell import CellResult, report_of
from reptrt.pipeline.sweep.grid import Cell


@dataclass(frozen=True)
class Row:
    """One cell in figures: percent, points, dB, milliseconds, seconds, megabytes.

    `drop_high` is the upper end of the drop's interval; `milliseconds` of INT8 and `fp16_milliseconds` are
    predicted, or measured where `timed` says so; None is what was not measured.
    """

    cell: str
    model: str
    calibrator: str
    weight_bits: int
    activation_bits: int
    target: str
    seed: int
    status: str
    reason: str = ""
    accuracy: float | None = None
    fp32: float | None = None
    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    milliseconds: float | None = None
    fp16_milliseconds: float | None = None
    timed: str = ""
    deploy: str = ""
    seconds: float | None = None
    peak_rss_mb: float | None = None
    node: str = ""
    folder: str = ""


def rows_of(
    cells: Sequence[Cell], results: Sequence[CellResult], workspace: Path, place: str
) -> list[Row]:
    """One row a cell, in the order of the cells.

    Args:
        cells: of the sweep.
        results: one of each.
        workspace: folder that holds their reports.
        place: what rows call that folder: its path, or the address of its store.
    """
    return [
        _row(cell, result, workspace, place) for cell, result in zip(cells, results, strict=True)
    ]


def write_tables(rows: Sequence[Row], folder: Path, command: str) -> Path:
    """Write sweep.csv, sweep.parquet (where PyArrow is) and the page sweep.html, whose path is returned.

    Raises:
        WriteError: `folder` cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows([_shown(row) for row in rows])
    with replace_when_done(folder / "sweep.csv") as path:
        path.write_text(text.getvalue(), encoding="utf-8")
    _write_parquet(rows, folder / "sweep.parquet")
    page = folder / "sweep.html"
    counts = Counter(row.status for row in rows)
    view = {
        "rows": [_cells(row) for row in rows],
        "conclusion": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "charts_by_model": [
            (model, *chart)
            for model in dict.fromkeys(row.model for row in rows)
            if (chart := _chart([row for row in rows if row.model == model]))
        ],
        "command": command,
    }
    write_page("sweep.html.j2", view, page, sortable=True)
    return page


def _row(cell: Cell, result: CellResult, workspace: Path, place: str) -> Row:
    recipe, report = cell.recipe, report_of(result, workspace)
    row = Row(
        cell.name, recipe.model, recipe.calibrator, recipe.weight_bits, recipe.activation_bits,
        recipe.target, recipe.seed, result.status, result.reason,
        seconds=result.seconds, node=result.node, folder=f"{place}/{result.folder}" if result.folder else "",
    )  # fmt: skip
    if report is None or result.status in ("failed", "lost"):
        return row
    accuracy = report.accuracy
    low, high = (accuracy.drop_interval if accuracy else None) or (None, None)
    timed = _times(report)
    found = {
        "calibrator": report.calibrator,
        "target": report.target,
        "accuracy": accuracy.quantized if accuracy else None,
        "fp32": accuracy.fp32 if accuracy else None,
        "drop": accuracy.drop if accuracy else None,
        "drop_low": low,
        "drop_high": high,
        "agreement": report.agreement,
        "snr_db": summary.worst_snr(report.numerics or {}),
        "milliseconds": timed[0],
        "fp16_milliseconds": timed[1],
        "timed": timed[2],
        "deploy": report.deploy or "",
        "peak_rss_mb": report.peak_rss_mb,
    }
    return Row(**{**asdict(row), **found})


def _times(report: Report) -> tuple[float | None, float | None, str]:
    """Milliseconds of INT8 and of FP16, by the GPU's clock, else as predicted; and which of both."""
    alone = report.latency_ms.device_only if report.latency_ms else None
    if alone is not None:
        int8, fp16 = (one.p50 if one else None for one in (alone.quantized, alone.fp16))
        return int8, fp16, "measured"
    if report.cost is not None:
        return report.cost.int8.milliseconds, report.cost.fp16.milliseconds, "predicted"
    return None, None, ""


def _shown(row: Row) -> dict[str, object]:
    """Values for CSV: text of others in visible characters, no cell that a spreadsheet would compute."""
    values = asdict(row)
    for name, value in values.items():
        if isinstance(value, str):
            plain = visible(value)
            values[name] = f"'{plain}" if plain[:1] in tuple("=+-@") else plain
    return values


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    try:
        from pyarrow import Table, parquet
    except ImportError:
        path.unlink(missing_ok=True)
        return
    with replace_when_done(path) as temporary:
        parquet.write_table(Table.from_pylist([asdict(row) for row in rows]), temporary)


def _cells(row: Row) -> list[tuple[str, str]]:
    """Of each column its text, and the number or text that it is sorted by."""
    shown = [
        (row.cell, row.cell), (row.status, row.status),
        (number_format.percent(row.accuracy), row.accuracy),
        (number_format.number(row.drop, 2), row.drop),
        (_interval(row), row.drop_high),
        (number_format.percent(row.agreement), row.agreement),
        (number_format.decibel(row.snr_db), row.snr_db),
        (number_format.milliseconds(row.milliseconds), row.milliseconds),
        (number_format.milliseconds(row.fp16_milliseconds), row.fp16_milliseconds),
        (row.deploy.upper() or number_format.MISSING, row.deploy),
        (number_format.duration(row.seconds), row.seconds),
        (number_format.file_size(None if row.peak_rss_mb is None else row.peak_rss_mb * 1e6),
         row.peak_rss_mb),
        (row.reason, row.reason),
    ]  # fmt: skip
    return [(text, "" if key is None else str(key)) for text, key in shown]


def _interval(row: Row) -> str:
    if row.drop_low is None or row.drop_high is None:
        return number_format.MISSING
    return f"{number_format.number(row.drop_low, 2)} to {number_format.number(row.drop_high, 2)}"


def _chart(rows: Sequence[Row]) -> tuple[str, ScatterChart] | None:
    """Accuracy in %, or else SNR in dB, over milliseconds; None where no cell has both."""
    measured = any(row.accuracy is not None for row in rows)
    samples = []
    for row in rows:
        level = row.accuracy if measured else row.snr_db
        if is_finite(level) and is_finite(row.milliseconds):
            write = number_format.percent if measured else number_format.decibel
            label = f"{row.calibrator} w{row.weight_bits}a{row.activation_bits}"
            samples.append(Sample(row.milliseconds, level, label, write(level)))
    reference = next((row.fp32 for row in rows if measured and is_finite(row.fp32)), None)
    if not samples:
        return None
    return "%" if measured else "dB", scatter_chart(samples, reference)
