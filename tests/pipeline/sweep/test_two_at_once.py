"""Two processes in one folder: each cell runs once, both end with all rows, and what cells share is made once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from reptrt.pipeline.sweep.cell import CellProgress, CellResult, run_cell
from reptrt.pipeline.sweep.grid import Cell, Resources, cells_of, load_sweep
from tests.command_line import TinyProject, reptrt
from tests.pipeline.test_shared_workspace import PAIR

TIMES = ("seconds", "peak_rss_mb", "deploy")  # on a CPU what to deploy follows from measured times


def rows(workspace: Path) -> list[dict[str, str]]:
    """The table, without what differs from run to run."""
    with (workspace / "sweep.csv").open() as file:
        found = [dict(row) for row in csv.DictReader(file)]
    for row in found:
        for name in (*TIMES, "folder"):
            del row[name]
    return found


@pytest.mark.slow
def test_two_sweeps_of_one_file_run_each_cell_once_and_agree(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(tiny.folder)]))
    base = {"model": tiny.model, "data": str(tiny.data), "evaluation": str(tiny.photos),
            "image_size": [32, 32], "target": "cpu", "quantize": "all"}  # fmt: skip
    content = {"base": base, "grid": {"calibrator": ["minmax", "mse"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    command = ["sweep", str(tmp_path / "sweep.yaml"), "--workspace"]
    pair = [sys.executable, "-c", PAIR, *command, str(tmp_path / "both")]
    both = subprocess.run(pair, capture_output=True, text=True, check=False)
    assert both.returncode == 0, both.stderr
    assert "Traceback" not in both.stderr
    assert "2/2" in both.stderr
    alone = reptrt(*command, tmp_path / "alone", "--quiet")
    assert alone.code == 0
    assert "2/2" not in alone.err
    found = rows(tmp_path / "both")
    assert [row["status"] for row in found] == ["done", "done"]
    assert all(row["accuracy"] for row in found)
    assert found == rows(tmp_path / "alone")
    logs = list((tmp_path / "both").rglob("run.log"))
    assert len(logs) == 2
    for log in logs:
        assert log.read_text().count("command: ") == 1


@pytest.mark.slow
def test_two_cells_at_the_same_time_make_what_they_share_once(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(tiny.folder)]))
    base = {"model": tiny.model, "data": str(tiny.data), "image_size": [32, 32], "target": "cpu"}
    content = {"base": base, "grid": {"calibrator": ["minmax", "mse"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    cells = cells_of(load_sweep(tmp_path / "sweep.yaml"), tmp_path)
    seen: list[CellProgress] = []

    def start(cell: Cell) -> CellResult:
        return run_cell(tmp_path / "out", cell, Resources(), "here", seen.append)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(start, cells))
    assert [one.status for one in results] == ["done", "done"], results
    logs = [path.read_text() for path in (tmp_path / "out").rglob("run.log")]
    assert len(logs) == 2
    for stage in ("channels", "fp32", "observe"):
        assert sum(log.count(f"{stage}: started") for log in logs) == 1, stage
    assert all(log.count("calibrate: started") == 1 for log in logs)
    alone = run_cell(tmp_path / "alone", cells[1], Resources(), "here", seen.append)
    folders = (tmp_path / "out" / str(results[1].folder), tmp_path / "alone" / str(alone.folder))
    one, other = ((folder / "scales.json").read_bytes() for folder in folders)
    assert one == other
