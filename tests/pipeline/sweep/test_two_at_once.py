"""Two processes with one sweep.yaml and one folder: each cell runs once, and both end with all rows."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command_line import TinyProject, reptrt
from tests.pipeline.test_shared_workspace import PAIR

TIMES = ("seconds", "peak_rss_mb")


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
    assert reptrt(*command, tmp_path / "alone").code == 0
    found = rows(tmp_path / "both")
    assert [row["status"] for row in found] == ["done", "done"]
    assert all(row["accuracy"] for row in found)
    assert found == rows(tmp_path / "alone")
    logs = list((tmp_path / "both").rglob("run.log"))
    assert len(logs) == 2
    for log in logs:
        assert log.read_text().count("command: ") == 1
