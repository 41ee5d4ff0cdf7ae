"""One model through several calibrators, as one self-contained HTML page: a table and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reptrt.engines.comparison_record import ComparisonRow
from reptrt.engines.report_schema import Accuracy
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report import number_format, summary
from reptrt.pipeline.report.budget_view import attempts_chart, top_level
from reptrt.pipeline.report.charts import is_finite
from reptrt.pipeline.report.page import write_page
from reptrt.pipeline.report.precision import precision_name
from reptrt.pipeline.report.scatter_chart import Sample, ScatterChart, scatter_chart

_SHORTEST = 0.01
"""Seconds; a logarithmic axis has no zero."""
_UNMEASURED = Accuracy(metric="")


def write_comparison(
    rows: Sequence[ComparisonRow], recipe: Recipe, command: str, path: Path
) -> None:
    """Write `rows` as one HTML file without scripts or external references.

    Args:
        rows: One per calibrator, in the order of the table.
        recipe: What they share.
        command: What the user typed.
        path: The file to write.
    """
    accuracy = next((row.accuracy for row in rows if row.accuracy is not None), None)
    view = {
        "model": recipe.model,
        "seed": recipe.seed,
        "precision": precision_name(recipe),
        "metric": summary.metric_name(accuracy.metric) if accuracy else None,
        "sample_note": summary.sample_note(accuracy),
        "conclusion": _conclusion(rows),
        "chart": _chart(rows),
        "budget_chart": _budget_chart(rows),
        "budget_unit": "dB" if _top(rows) is None else "%",
        "budget_level": _budget_level(rows),
        "rows": [_cells(row) for row in rows],
        "command": command,
    }
    write_page("comparison.html.j2", view, path)


def _conclusion(rows: Sequence[ComparisonRow]) -> str:
    """Which one is the closest to FP32: by agreement, or where there are no labels by SNR; "" where none is known."""
    agreeing = [(row.agreement, row) for row in rows if is_finite(row.agreement)]
    if agreeing:
        agreement, row = max(agreeing, key=lambda pair: pair[0])
        return f"{summary.calibrator_name(row)} is the closest to FP32: agreement {number_format.percent(agreement)}"
    levels = [(summary.worst_snr(row.numerics), row) for row in rows]
    known = [(level, row) for level, row in levels if is_finite(level)]
    if not known:
        return ""
    level, row = max(known, key=lambda pair: pair[0])
    return f"{summary.calibrator_name(row)} is the closest to FP32: {number_format.decibel(level)}"


def _cells(row: ComparisonRow) -> dict[str, str]:
    """Everything that the table shows of one calibrator."""
    accuracy, memory = row.accuracy or _UNMEASURED, row.peak_rss_mb
    return {
        "calibrator": summary.calibrator_name(row),
        "images": number_format.number(row.num_samples, 0),
        "fp32": number_format.percent(accuracy.fp32),
        "quantized": number_format.percent(accuracy.quantized),
        "drop": number_format.number(accuracy.drop, 2),
        "agreement": number_format.percent(row.agreement),
        "snr": number_format.decibel(summary.worst_snr(row.numerics)),
        "seconds": number_format.duration(row.seconds),
        "memory": number_format.file_size(None if memory is None else memory * 1e6),
    }


def _chart(rows: Sequence[ComparisonRow]) -> ScatterChart | None:
    """Accuracy over seconds; where none was measured, SNR of the worst output."""
    measured = any(row.accuracy for row in rows)
    write = number_format.percent if measured else number_format.decibel
    samples, levels = [], []
    for row in rows:
        accuracy, seconds = row.accuracy or _UNMEASURED, row.seconds
        level = accuracy.quantized if measured else summary.worst_snr(row.numerics)
        levels.append(accuracy.fp32)
        if is_finite(level) and is_finite(seconds):
            name = summary.calibrator_name(row)
            samples.append(Sample(max(seconds, _SHORTEST), level, name, write(level)))
    reference = next((level for level in levels if is_finite(level)), None)
    return scatter_chart(samples, reference) if samples else None


def _budget_chart(rows: Sequence[ComparisonRow]) -> ScatterChart | None:
    """Every choice of INT8 layers that was measured, against predicted milliseconds."""
    return attempts_chart({summary.calibrator_name(row): row.attempts for row in rows}, _top(rows))


def _top(rows: Sequence[ComparisonRow]) -> float | None:
    levels = (top_level(row.accuracy, row.likeness) for row in rows)
    return next((level for level in levels if level is not None), None)


def _budget_level(rows: Sequence[ComparisonRow]) -> str:
    """What the levels of that chart are."""
    if _top(rows) is None:
        return "Signal to noise ratio"
    metrics = [row.accuracy.metric for row in rows if row.accuracy is not None]
    return summary.metric_name(metrics[0]) if metrics else "What INT8 keeps of FP32's answers"
