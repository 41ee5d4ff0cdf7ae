"""One cell of a sweep in a process of its own: what it reports on its way, and what it leaves."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from reptrt.engines.artifacts import replace_when_done, write_json
from reptrt.engines.file_lock import hold_lock
from reptrt.engines.foreign.ranges import Amount, Count
from reptrt.engines.foreign.text import one_line
from reptrt.engines.report_schema import Report
from reptrt.engines.target import UnknownTargetError, resolve_target
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.workspace.folder import WorkspaceError, read_artifact, run_folder
from reptrt.pipeline.workspace.records import RecordError, read_record

Status = Literal["done", "gate failed", "failed", "lost"]
GATE_FAILED = 1
WAITS = "waits for another process"
REPORT = "report.json"
RESULT = "result.json"
_PROGRESS = re.compile(
    r"\[(\d+):(\d\d)\] (?:still at work: )?(.+?)(?:: (?:(\d+)/(\d+)|started|waits .*|\d+))?$"
)
_LAST_LINES = 20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class CellProgress:
    """Where a cell is; `share` of its present work is 0 to 1, None where that is not known."""

    cell: str
    node: str
    work: str
    share: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class CellResult:
    """How a cell ended.

    Attributes:
        cell: its name.
        key: of the cell (`Cell.key`) that it is the result of.
        status: `failed` has a `reason`; `lost` is of a node that went away once too often.
        reason: what the run said last.
        exit_code: of the run; None where it has none.
        seconds: from its start to its end, by the clock on the wall.
        node: where it ran.
        folder: of the run, with its report, from the sweep's workspace; None where there is none.
        peak_bytes: most memory of the run; None where that is not known.
    """

    cell: str
    key: str
    status: Status
    reason: str = ""
    exit_code: int | None = None
    seconds: Amount = 0.0
    node: str = ""
    folder: str | None = None
    peak_bytes: Count | None = None


Watch = Callable[[CellProgress], None]


def cell_folder(workspace: Path, cell: Cell) -> Path:
    """Folder of a cell's own files: its recipe and its result."""
    return workspace / "cells" / cell.name


def finished_result(workspace: Path, cell: Cell) -> CellResult | None:
    """The result that a former sweep left, where it is of this very cell, ended well, and is as it was written."""
    try:
        result = read_record(cell_folder(workspace, cell) / RESULT, CellResult)
    except RecordError:
        return None
    report = report_of(result, workspace)
    if result.key != cell.key or report is None:
        return None
    is_own = result.folder == _relative(_report_of(_root(workspace, cell), cell), workspace)
    return result if is_own and result.status == _status(report) else None


def _relative(folder: Path | None, workspace: Path) -> str | None:
    return None if folder is None else folder.relative_to(workspace).as_posix()


def _status(report: Report) -> Status:
    return "gate failed" if report.verdict.stops else "done"


def _root(workspace: Path, cell: Cell) -> Path:
    """Workspace of the run of `cell`."""
    return workspace / "runs" / cell.group


def run_cell(
    workspace: Path, cell: Cell, resources: Resources, node: str, watch: Watch
) -> CellResult:
    """Run `reptrt engine` with the recipe of `cell`; whatever happens there is a result.

    Where another sweep in the same folder runs the cell, its result is waited for and taken. The run's own
    files lie in `workspace/runs/<group>`, so that a cell that is tried again goes on where the last try
    stopped, and cells of one group share a calibration.

    Args:
        workspace: of the sweep; all nodes see it under this path.
        cell: what to run.
        resources: threads that the run may use, and hours that it may take.
        node: name of this machine.
        watch: called as work advances.
    """
    folder = cell_folder(workspace, cell)
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".lock", lambda: watch(CellProgress(cell.name, node, WAITS))):
        return finished_result(workspace, cell) or _run_cell(
            workspace, cell, resources, node, watch
        )


def _run_cell(
    workspace: Path, cell: Cell, resources: Resources, node: str, watch: Watch
) -> CellResult:
    folder = cell_folder(workspace, cell)
    recipe = folder / "recipe.yaml"
    with replace_when_done(recipe) as path:
        values = cell.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"model"})
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    root = _root(workspace, cell)
    command = [sys.executable, "-m", "reptrt", "engine", cell.recipe.model, "--recipe", str(recipe),
               "--workspace", str(root), "--json"]  # fmt: skip
    started = time.monotonic()
    code, said = _run(command, cell, resources, node, watch)
    made = _report_of(root, cell)
    result = CellResult(
        cell.name, cell.key, "done", exit_code=code, node=node,
        seconds=round(time.monotonic() - started, 2),
        folder=_relative(made, workspace),
    )  # fmt: skip
    report = report_of(result, workspace)
    if report is not None and report.peak_rss_mb is not None:
        result = replace(result, peak_bytes=int(1e6 * report.peak_rss_mb))
    if code == GATE_FAILED and made is not None:
        result = replace(result, status="gate failed")
    elif code != 0 or made is None:
        result = replace(result, status="failed", reason=said)
    write_json(result, folder / RESULT)
    return result


def report_of(result: CellResult, workspace: Path) -> Report | None:
    """The report of a cell in `workspace`, where it left one that nobody changed."""
    if result.folder is None:
        return None
    try:
        return read_artifact(workspace / result.folder / REPORT, "report", Report)
    except (RecordError, WorkspaceError):
        return None


def _run(
    command: list[str], cell: Cell, resources: Resources, node: str, watch: Watch
) -> tuple[int, str]:
    """Exit code of the run, and the last line that it said on stderr."""
    threads = str(resources.cpus)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    started = time.monotonic()
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        env=environment, preexec_fn=_die_with_parent,
    ) as process:  # fmt: skip
        limit = None if resources.hours is None else started + 3600 * resources.hours
        assert process.stderr is not None
        try:
            for line in process.stderr:
                found = _PROGRESS.match(line.rstrip())
                if found is None:
                    last.append(line.strip())
                else:
                    share = int(found[4]) / max(int(found[5]), 1) if found[4] else None
                    watch(
                        CellProgress(cell.name, node, found[3], share, time.monotonic() - started)
                    )
                if limit is not None and time.monotonic() > limit:
                    process.kill()
                    return -signal.SIGKILL, f"stopped after {resources.hours:g} hours"
        except BaseException:
            process.terminate()
            raise
    said = next((line for line in reversed(last) if line), f"left with {process.returncode}")
    return process.returncode, one_line(said.removeprefix("reptrt: "), 300)


def folder_of_run(root: Path, cell: Cell) -> Path | None:
    """Folder of the run of `cell` below `root`; None where its target is none, which the run says."""
    try:
        return run_folder(root, cell.recipe, resolve_target(cell.recipe.target).name)
    except UnknownTargetError:
        return None


def _report_of(root: Path, cell: Cell) -> Path | None:
    """Folder of the run of `cell` below `root`, where it left a report."""
    folder = folder_of_run(root, cell)
    return folder if folder is not None and (folder / REPORT).exists() else None


def _die_with_parent() -> None:
    """Let Linux end this process with its parent: a killed worker must not leave a run behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
