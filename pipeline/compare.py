"""Run one model with several calibrators and tabulate the results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from reptrt.calibrators.state import read_result
from reptrt.engines.comparison_record import ComparisonRow
from reptrt.engines.report_schema import Accuracy, Validation
from reptrt.pipeline.budget import calibrate_and_export, measure_attempt
from reptrt.pipeline.gate import require_labels
from reptrt.pipeline.report.collect import budget_search
from reptrt.pipeline.report.number_format import MISSING
from reptrt.pipeline.report.summary import calibrator_name, worst_snr
from reptrt.pipeline.run import Run, open_labelled
from reptrt.pipeline.workspace.folder import read_artifact, stage_records


def compare_calibrators(run: Run) -> ComparisonRow:
    """Calibrate, export and validate `run`, within its budget where it has one.

    An engine that cannot run here is not built.
    """
    require_labels(run)
    open_labelled(run, run.loaded)
    calibrate_and_export(run)
    last = measure_attempt(run)
    search = budget_search(run.workspace, run.plan)
    found = read_artifact(run.workspace.validation, "validate", Validation)
    record = stage_records(run.workspace)["calibrate"]
    calibration = read_result(run.workspace.calibration)
    return ComparisonRow(
        calibrator=run.recipe.calibrator,
        method=calibration.method,
        num_samples=calibration.num_samples,
        accuracy=found.accuracy,
        likeness=found.likeness,
        numerics=found.numerics or {},
        attempts=search.attempts if search else (last,),
        seconds=record.seconds,
        peak_rss_mb=record.peak_rss_mb,
    )


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Accuracy in percent, drop in points, SNR of the worst output, seconds and peak memory."""
    table = Table(box=None, pad_edge=False)
    table.add_column("calibrator")
    for header in ("FP32", "INT8", "drop", "agreement", "SNR dB", "seconds", "peak MB"):
        table.add_column(header, justify="right")
    for row in rows:
        accuracy = row.accuracy or Accuracy(metric="")
        cells = [accuracy.fp32, accuracy.quantized, accuracy.drop]
        cells += [row.agreement, worst_snr(row.numerics), row.seconds]
        written = [MISSING if cell is None else f"{cell:.2f}" for cell in cells]
        memory = row.peak_rss_mb
        written.append(MISSING if memory is None else f"{memory:.0f}")
        table.add_row(calibrator_name(row), *written)
    return table
