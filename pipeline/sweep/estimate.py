"""What a sweep will take, from what cells like its own have taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from reptrt.engines.report_schema import Report
from reptrt.pipeline.sweep.cell import REPORT, finished_result
from reptrt.pipeline.sweep.grid import Cell, Resources, Sweep
from reptrt.pipeline.sweep.memory import memory_of
from reptrt.pipeline.workspace.records import RecordError, read_record


@dataclass(frozen=True)
class Planned:
    """A cell before it runs; `hours` is None where no run of its model has been here yet."""

    cell: str
    state: str
    hours: float | None
    memory: int


def estimate(cell: Cell, workspace: Path, resources: Resources) -> Planned:
    """What `cell` will take, by the median of former runs of its model and calibrator in `workspace`."""
    done = finished_result(workspace, cell)
    memory = memory_of(cell, resources)
    if done is not None:
        return Planned(cell.name, "done", 0.0, memory)
    former = [_seconds(path, cell) for path in (workspace / "runs").glob(f"*/*/*/*/{REPORT}")]
    known = [one for one in former if one is not None]
    return Planned(cell.name, "to run", median(known) / 3600 if known else None, memory)


def totals(planned: Sequence[Planned], sweep: Sweep) -> dict[str, object]:
    """Cells, hours of CPU and cost of all; of hours those that are known."""
    hours = sum(one.hours or 0.0 for one in planned) * sweep.resources.cpus
    unknown = sum(one.hours is None for one in planned)
    whole: dict[str, object] = {
        "cells": len(planned),
        "to run": sum(one.state != "done" for one in planned),
        "CPU hours": round(hours, 2),
        "cells of unknown length": unknown,
    }
    if sweep.price_per_hour is not None:
        whole["cost"] = round(hours * sweep.price_per_hour, 2)
    return whole


def _seconds(path: Path, cell: Cell) -> float | None:
    try:
        report = read_record(path, Report)
    except RecordError:
        return None
    if report.model != cell.recipe.model or report.seconds is None:
        return None
    return sum(one for one in report.seconds.values() if one)
