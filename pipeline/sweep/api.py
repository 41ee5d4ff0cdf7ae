"""A whole sweep: run its cells, log them, write its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reptrt.engines.target import MissingComponentError
from reptrt.pipeline.sweep.cell import CellProgress, CellResult
from reptrt.pipeline.sweep.grid import Cell, Sweep, cells_of, load_sweep
from reptrt.pipeline.sweep.run import Executor, SweepWatch, in_processes, run_sweep
from reptrt.pipeline.sweep.table import Row, rows_of, write_tables


class Silent:
    """Looks at nothing."""

    def progress(self, progress: CellProgress) -> None:
        """Do nothing."""

    def finished(self, result: CellResult) -> None:
        """Do nothing."""


def sweep(
    file: str | Path, workspace: str | Path = "build/sweep", ray: bool | str = False
) -> list[Row]:
    """Run every cell of a YAML file; the rows are what the page shows.

    Args:
        file: with `base`, `grid`, `include`, `exclude` and `resources`.
        workspace: folder that all nodes see; gets sweep.html, sweep.csv, sweep.parquet.
        ray: True starts Ray on this machine, an address uses that cluster; False runs one cell after the
            other in processes.

    Raises:
        SweepError, RecipeError: the file is not legal.
        MissingComponentError: Ray is not installed, or nothing answers at the address.
    """
    loaded = load_sweep(Path(file))
    cells = cells_of(loaded, Path(file).parent)
    where = (bool(ray), ray if isinstance(ray, str) else None)
    command = f"reptrt.sweep({str(file)!r})"
    return run_file(loaded, cells, Path(workspace), Silent(), command, where)


def run_file(
    loaded: Sweep,
    cells: Sequence[Cell],
    workspace: Path,
    watch: SweepWatch,
    command: str,
    ray: tuple[bool, str | None] = (False, None),
    tracking: str | None = None,
) -> list[Row]:
    """Run `cells`, and write the tables; see `sweep`.

    Args:
        loaded: the file's content.
        cells: of it.
        workspace: folder that all nodes see.
        watch: told as cells advance and end.
        command: what was typed or called.
        ray: whether to use Ray, and its address.
        tracking: URI of MLflow, where each cell becomes a run; None logs nothing.
    """
    execute: Executor = in_processes
    if any(ray):
        from reptrt.pipeline.sweep.on_ray import on_ray

        execute = on_ray(ray[1])
    client = None if tracking is None else _mlflow(tracking)
    results = run_sweep(cells, workspace, loaded.resources, watch, execute)
    rows = rows_of(cells, results)
    write_tables(rows, workspace, command)
    if client is not None:
        for cell, row in zip(cells, rows, strict=True):
            _log(client, cell, row)
    return rows


def _mlflow(uri: str) -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise MissingComponentError(
            f"logging needs MLflow ({error}): pip install 'reptrt[mlflow]', or leave `mlflow` out"
        ) from None
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("reptrt sweep")
    return mlflow


def _log(mlflow: Any, cell: Cell, row: Row) -> None:
    with mlflow.start_run(run_name=cell.name):
        mlflow.log_params({"model": row.model, **cell.axes, "status": row.status})
        numbers = {name: value for name, value in vars(row).items() if isinstance(value, float)}
        mlflow.log_metrics(numbers)
