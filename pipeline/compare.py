"""The same model through several calibrators: one row each."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from calibrators.state import read_result
from pipeline.run import Run, calibrate, export, validate
from pipeline.workspace import stage_records


def compare_calibrators(run: Run) -> dict[str, Any]:
    """Calibrate, export and validate `run`; no engine is built, its graph has the same shape."""
    calibrate(run)
    export(run)
    validate(run)
    results = json.loads(run.workspace.validation.read_text())
    records = stage_records(run.workspace)
    return {
        "calibrator": run.recipe.calibrator,
        "method": read_result(run.workspace.calibration).method,
        "accuracy": results["accuracy"],
        "numerics": results["numerics"],
        "seconds": records["calibrate"]["seconds"],
        "peak_rss_mb": records["calibrate"]["peak_rss_mb"],
    }


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """Accuracy in percent, drop in points, SNR of the worst output, seconds of calibration."""
    table = Table(box=None, pad_edge=False)
    table.add_column("calibrator")
    for header in ("FP32", "INT8", "drop", "agreement", "SNR dB", "seconds"):
        table.add_column(header, justify="right")
    for row in rows:
        accuracy = row["accuracy"] or {}
        decibels = [entry["snr_db"] for entry in row["numerics"].values()]
        known = [value for value in decibels if value is not None]
        cells = [accuracy.get(key) for key in ("fp32", "quantized", "drop", "agreement")]
        cells += [min(known, default=None), row["seconds"]]
        name = row["calibrator"]
        label = name if row["method"] == name else f"{name} ({row['method']})"
        table.add_row(label, *["–" if cell is None else f"{cell:.2f}" for cell in cells])
    return table
