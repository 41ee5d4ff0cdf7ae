"""Cells run one after the other; what is finished stays, what fails is a row."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyarrow import parquet

from reptrt.engines.target import resolve_target
from reptrt.pipeline.sweep.cell import CellProgress, CellResult, _report_of, finished_result
from reptrt.pipeline.sweep.grid import Sweep, cells_of, load_sweep
from reptrt.pipeline.sweep.table import Row, write_tables
from reptrt.pipeline.workspace.folder import run_folder
from tests.command_line import Outcome, TinyProject, reptrt


@dataclass
class Watch:
    """Notes what it is told."""

    works: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        pass

    def progress(self, progress: CellProgress) -> None:
        self.works.append(progress.work)

    def finished(self, result: CellResult) -> None:
        self.ended.append(f"{result.cell}: {result.status}")


@pytest.fixture(scope="module")
def swept(tiny: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A sweep of three cells; the last one asks for images that are not there."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(
        f"base: {{model: '{tiny.model}', evaluation: {tiny.photos}, image_size: [32, 32], target: cpu}}\n"
        f"grid: {{calibrator: [minmax, mse], data: [{tiny.data}]}}\n"
        "include: [{calibrator: mae, data: nowhere}]\n"
    )
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), str(tiny.folder), before])
    try:
        outcome = reptrt("sweep", folder / "sweep.yaml", "--workspace", folder / "out", "--json")
    finally:
        os.environ["PYTHONPATH"] = before
    return folder, outcome


def test_one_bad_cell_is_a_row_with_its_reason(swept: tuple[Path, Outcome]) -> None:
    _, outcome = swept
    assert outcome.code == 1
    rows = json.loads(outcome.out)
    assert [(row["cell"].rpartition("-")[2], row["status"]) for row in rows] == [
        ("minmax", "done"), ("mse", "done"), ("mae", "failed"),
    ]  # fmt: skip
    assert "nowhere" in rows[2]["reason"]
    assert rows[0]["accuracy"] is not None
    assert rows[2]["accuracy"] is None
    assert rows[0]["seconds"] > 0


def test_the_same_command_runs_only_what_is_not_finished(
    swept: tuple[Path, Outcome], tiny: TinyProject
) -> None:
    folder, _ = swept
    logs = {path: path.read_bytes() for path in (folder / "out").rglob("run.log")}
    logs = {path: log for path, log in logs.items() if "mae" not in str(path)}
    assert len(logs) == 2
    outcome = reptrt("sweep", folder / "sweep.yaml", "--workspace", folder / "out")
    assert outcome.code == 1
    assert {path: path.read_bytes() for path in logs} == logs
    planned = reptrt(
        "sweep", folder / "sweep.yaml", "--workspace", folder / "out", "--dry-run", "--json"
    )
    assert [one["state"] for one in json.loads(planned.out)["cells"]] == ["done", "done", "to run"]


def test_the_tables_say_the_same(swept: tuple[Path, Outcome]) -> None:
    folder, outcome = swept
    rows = json.loads(outcome.out)
    with (folder / "out" / "sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["accuracy"] for row in written] == [
        "" if row["accuracy"] is None else str(row["accuracy"]) for row in rows
    ]
    table = parquet.read_table(folder / "out" / "sweep.parquet").to_pylist()
    assert [row["status"] for row in table] == [row["status"] for row in rows]
    page = (folder / "out" / "sweep.html").read_text()
    assert "3 cells: 2 done, 1 failed" in page
    assert page.count("<script>") == 1


def test_the_chart_of_a_model_joins_its_pareto_front(tmp_path: Path) -> None:
    cells = (("a", 80.0, 2.0), ("b", 70.0, 1.0), ("c", 60.0, 3.0))
    rows = [
        Row(name, "m", name, 8, 8, "cpu", 0, "done", accuracy=accuracy, milliseconds=milliseconds)
        for name, accuracy, milliseconds in cells
    ]
    page = write_tables(rows, tmp_path, "reptrt sweep").read_text()
    assert page.count('<line class="front"') == 1
    assert "Pareto front" in page


def test_names_of_others_are_text(tmp_path: Path) -> None:
    row = Row("<script>", "m", "=1+1", 8, 8, "cpu", 0, "failed", "\x1b]0;title\n", folder="")
    page = write_tables([row], tmp_path, "reptrt sweep").read_text()
    assert page.count("<script>") == 1
    assert "\x1b" not in page
    assert "'=1+1" in (tmp_path / "sweep.csv").read_text()


@pytest.mark.parametrize("target", ["cpu", "auto"])
def test_a_cell_has_the_report_of_its_own_target_whatever_the_clock_says(
    tmp_path: Path, target: str
) -> None:
    (cell,) = cells_of(Sweep(grid={"model": ["repvgg_a0"]}, base={"target": target}))
    own = run_folder(tmp_path, cell.recipe, resolve_target(target).name)
    other = run_folder(tmp_path, cell.recipe, "jetson-orin")
    for folder, seconds in ((own, 0), (other, 4_000_000_000)):
        folder.mkdir(parents=True)
        (folder / "report.json").touch()
        os.utime(folder / "report.json", (seconds, seconds))
    assert _report_of(tmp_path, cell) == own
    (own / "report.json").unlink()
    assert _report_of(tmp_path, cell) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report, result: edit(report, ("accuracy", "quantized"), 99.0),
        lambda report, result: report.unlink(),
        lambda report, result: edit(result, ("status",), "gate failed"),
        lambda report, result: edit(result, ("folder",), "/elsewhere"),
        lambda report, result: edit(result, ("key",), "0"),
        lambda report, result: edit(result, ("seconds",), -1.0),
        lambda report, result: result.write_text("[" * 5000),
        lambda report, result: result.write_bytes(b""),
    ],
    ids=["report", "no report", "status", "folder", "key", "seconds", "deep", "empty"],
)
def test_a_result_or_report_that_was_edited_is_no_result(
    swept: tuple[Path, Outcome], tmp_path: Path, spoil: Callable[[Path, Path], object]
) -> None:
    folder, _ = swept
    (cell, *_) = cells_of(load_sweep(folder / "sweep.yaml"), folder)
    shutil.copytree(folder / "out", tmp_path / "out")
    result = tmp_path / "out" / "cells" / cell.name / "result.json"
    report = tmp_path / "out" / json.loads(result.read_text())["folder"] / "report.json"
    assert finished_result(tmp_path / "out", cell) is not None
    spoil(report, result)
    assert finished_result(tmp_path / "out", cell) is None


def edit(path: Path, keys: tuple[str, ...], value: object) -> None:
    content = json.loads(path.read_text())
    owner = content
    for key in keys[:-1]:
        owner = owner[key]
    owner[keys[-1]] = value
    path.write_text(json.dumps(content))
