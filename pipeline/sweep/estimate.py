"""What a sweep will take: as long as cells like its own have taken, or by one pass of each model's float network."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from reptrt.calibrators.names import AUTO
from reptrt.engines.foreign.text import one_line
from reptrt.engines.partial import temporary_folder
from reptrt.engines.report_schema import Report
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.sweep.cell import REPORT, finished_result
from reptrt.pipeline.sweep.grid import Cell, Resources, Sweep
from reptrt.pipeline.sweep.memory import memory_of
from reptrt.pipeline.workspace.records import RecordError, read_record

FORMER, GUESS = "runs here", "one pass"
_CALIBRATOR = re.compile(r"(.+)-w\d+a\d+")
_Kind = tuple[str, str]
"""Model and calibrator."""


@dataclass(frozen=True)
class _Guess:
    """Seconds of a group's cells by one of them: of all stages but calibration, and of a pass over an image there."""

    others: float
    pass_of_image: float
    auto: str

    def seconds(self, recipe: Recipe) -> float:
        """Of a cell of the group."""
        return self.others + self.pass_of_image * _passes(recipe, self.auto)


@dataclass(frozen=True)
class Planned:
    """A cell before it runs.

    Attributes:
        cell: its name.
        state: `done` or `to run`.
        hours: that it will take; None where nothing tells.
        memory: bytes that it asks for.
        known_from: `runs here`, `one pass` (`reptrt.pipeline.dry_run`), or why nothing tells.
    """

    cell: str
    state: str
    hours: float | None
    memory: int
    known_from: str


def plan_cells(cells: Sequence[Cell], workspace: Path, resources: Resources) -> list[Planned]:
    """What each of `cells` will take.

    That is the median of the former runs in `workspace` of its model and calibrator, or else of its model. Where
    there is none, one cell of each group is looked at as `reptrt engine --dry-run` does, which reads its model and
    images; of the others only calibration is taken to last longer or shorter, by its passes over the images.
    """
    former = _former_seconds(workspace)
    guesses: dict[str, _Guess | str] = {}
    return [_plan(cell, workspace, resources, former, guesses) for cell in cells]


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


def _plan(
    cell: Cell,
    workspace: Path,
    resources: Resources,
    former: Mapping[_Kind, Sequence[float]],
    guesses: dict[str, _Guess | str],
) -> Planned:
    memory, recipe = memory_of(cell, resources), cell.recipe
    if finished_result(workspace, cell) is not None:
        return Planned(cell.name, "done", 0.0, memory, FORMER)
    own = former.get((recipe.model, recipe.calibrator)) or [
        one for (model, _), seconds in former.items() if model == recipe.model for one in seconds
    ]
    if own:
        return Planned(cell.name, "to run", median(own) / 3600, memory, FORMER)
    if cell.group not in guesses:
        guesses[cell.group] = _guess(recipe)
    found = guesses[cell.group]
    if isinstance(found, str):
        return Planned(cell.name, "to run", None, memory, found)
    return Planned(cell.name, "to run", found.seconds(recipe) / 3600, memory, GUESS)


def _former_seconds(workspace: Path) -> dict[_Kind, list[float]]:
    """Seconds of the runs that left a report."""
    found: dict[_Kind, list[float]] = defaultdict(list)
    for path in (workspace / "runs").glob(f"*/*/*/*/{REPORT}"):
        calibrator = _CALIBRATOR.match(path.parts[-3])
        try:
            report = read_record(path, Report)
        except RecordError:
            continue
        if calibrator is not None and report.seconds is not None:
            seconds = sum(one for one in report.seconds.values() if one)
            found[report.model, calibrator[1]].append(seconds)
    return found


def _guess(recipe: Recipe) -> _Guess | str:
    """By one pass of the float network, or why that cannot be."""
    from reptrt.pipeline.dry_run import dry_run  # here: PyTorch, which no sweep needs otherwise
    from reptrt.pipeline.open_run import Caller, open_run

    try:
        with (
            temporary_folder() as folder,
            open_run(recipe, folder, Caller("reptrt sweep --dry-run")) as run,
        ):
            found, auto = dry_run(run), run.plan.calibrator
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        return one_line(error, 200)
    calibration = sum(one.seconds for one in found.stages if one.name == "calibrate")
    others = found.seconds - calibration
    return _Guess(others, calibration / _passes(recipe, auto), auto)


def _passes(recipe: Recipe, auto: str) -> int:
    """Passes of a calibration, times images; `auto` is what that name stands for."""
    from reptrt.calibrators.registry import create_calibrator
    from reptrt.pipeline.dry_run import HIGH_EFFORT

    chosen = create_calibrator(auto if recipe.calibrator == AUTO else recipe.calibrator)
    effort = HIGH_EFFORT if recipe.effort == "high" else 1
    usual = chosen.usual_num_samples(min(recipe.weight_bits, recipe.activation_bits))
    return effort * chosen.passes * (recipe.num_samples or usual)
