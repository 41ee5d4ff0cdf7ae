"""Run one model with several calibrators and tabulate the results."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table

from reptrt.calibrators.state import read_result
from reptrt.engines.report_schema import ComparisonRow
from reptrt.pipeline.report.number_format import MISSING
from reptrt.pipeline.report.summary import calibrator_name, worst_snr
from reptrt.pipeline.run import Run
from reptrt.pipeline.stages import build, calibrate, export, open_labelled, validate
from reptrt.pipeline.validation.validate import engine_can_run
from reptrt.pipeline.workspace import stage_records


def compare_calibrators(run: Run) -> ComparisonRow:
    """Calibrate, export and validate `run`; an engine that cannot run here is not built."""
    open_labelled(run, run.loaded)
    calibrate(run)
    export(run)
    if engine_can_run(run.target):
        build(run)
    validate(run)
    results = json.loads(run.workspace.validation.read_text())
    record = stage_records(run.workspace)["calibrate"]
    found = read_result(run.workspace.calibration)
    return {
        "calibrator": run.recipe.calibrator,
        "method": found.method,
        "num_samples": found.num_samples,
        "accuracy": results["accuracy"],
        "numerics": results["numerics"],
        "seconds": record["seconds"],
        "peak_rss_mb": record["peak_rss_mb"],
    }


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Accuracy in percent, drop in points, SNR of the worst output, seconds and peak memory."""
    table = Table(box=None, pad_edge=False)
    table.add_column("calibrator")
    for header in ("FP32", "INT8", "drop", "agreement", "SNR dB", "seconds", "peak MB"):
        table.add_column(header, justify="right")
    for row in rows:
        accuracy = row["accuracy"] or {}
        cells = [accuracy.get("fp32"), accuracy.get("quantized"), accuracy.get("drop")]
        cells += [accuracy.get("agreement"), worst_snr(row["numerics"]), row["seconds"]]
        written = [MISSING if cell is None else f"{cell:.2f}" for cell in cells]
        memory = row["peak_rss_mb"]
        written.append(MISSING if memory is None else f"{memory:.0f}")
        table.add_row(calibrator_name(row), *written)
    return table
