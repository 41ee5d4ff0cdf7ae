"""Cells of a sweep in MLflow, which a stand-in plays: it is not one of our packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from reptrt.pipeline.sweep import api
from reptrt.pipeline.sweep.grid import cells_of, load_sweep
from reptrt.pipeline.sweep.table import Row
from tests.command_line import reptrt


class Mlflow(ModuleType):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.said: list[object] = []

    def set_tracking_uri(self, uri: str) -> None:
        self.said.append(uri)

    def set_experiment(self, name: str) -> None:
        self.said.append(name)

    @contextmanager
    def start_run(self, run_name: str) -> Iterator[None]:
        self.said.append(run_name)
        yield

    def log_params(self, params: dict[str, str]) -> None:
        self.said.append(params)

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.said.append(metrics)


def test_each_cell_is_a_run_with_its_axes_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.yaml").write_text("grid: {model: repvgg_a0, calibrator: mse, bits: 6}")
    (cell,) = cells_of(load_sweep(tmp_path / "sweep.yaml"), tmp_path)
    row = Row(cell.name, "repvgg_a0", "mse", 6, 6, "cpu", 0, "done", accuracy=71.5, drop=0.0)
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    api._log(api._mlflow("file:x"), cell, row)
    axes = {"calibrator": "mse", "bits": "6"}
    assert mlflow.said == [
        "file:x", "reptrt sweep", "repvgg_a0-mse-w6",
        {"model": "repvgg_a0", **axes, "status": "done"}, {"accuracy": 71.5, "drop": 0.0},
    ]  # fmt: skip


def test_without_mlflow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "sweep.yaml").write_text("grid: {model: repvgg_a0}")
    outcome = reptrt(
        "sweep", tmp_path / "sweep.yaml", "--workspace", tmp_path / "out", "--mlflow", "x"
    )
    assert outcome.code == 4
    (line,) = outcome.complaints
    assert "pip install 'reptrt[mlflow]'" in line
    assert not (tmp_path / "out").exists()
