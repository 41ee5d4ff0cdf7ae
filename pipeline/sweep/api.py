"""A whole sweep: run its cells, log them, write its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from reptrt.engines.partial import temporary_folder
from reptrt.engines.target import MissingComponentError
from reptrt.pipeline.sweep.cell import CellProgress, CellResult, run_cell
from reptrt.pipeline.sweep.grid import Cell, Sweep, cells_of, load_sweep
from reptrt.pipeline.sweep.run import Executor, SweepWatch, Work, in_processes, run_sweep
from reptrt.pipeline.sweep.store import Store, fetch_results, is_url, run_in_store
from reptrt.pipeline.sweep.table import Row, rows_of, write_tables


class Silent:
    """Looks at nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

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
        workspace: folder that all nodes see, or the address of an object store (`s3://bucket/folder`); gets
            sweep.html, sweep.csv, sweep.parquet.
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
    return run_file(loaded, cells, str(workspace), Silent(), command, where)


def run_file(
    loaded: Sweep,
    cells: Sequence[Cell],
    workspace: str,
    watch: SweepWatch,
    command: str,
    ray: tuple[bool, str | None] = (False, None),
    tracking: str | None = None,
) -> list[Row]:
    """Run `cells`, and write the tables; see `sweep`.

    Args:
        loaded: the file's content.
        cells: of it.
        workspace: folder that all nodes see, or the address of an object store.
        watch: told as cells advance and end.
        command: what was typed or called.
        ray: whether to use Ray, and its address.
        tracking: URI of MLflow, where each cell becomes a run; None logs nothing.
    """
    client = None if tracking is None else _mlflow(tracking)
    with opened(workspace) as (folder, store):
        work = partial(run_cell, folder) if store is None else partial(run_in_store, store.url)
        execute = _executor(work, ray, watch, has_locks=store is None)
        results = run_sweep(cells, folder, loaded.resources, watch, execute)
        if store is not None:
            fetch_results(store, folder)
        rows = rows_of(cells, results, folder, str(folder) if store is None else store.url)
        write_tables(rows, folder, command)
        if store is not None:
            store.send(folder)
    if client is not None:
        for cell, row in zip(cells, rows, strict=True):
            _log(client, cell, row)
    return rows


@contextmanager
def opened(workspace: str) -> Iterator[tuple[Path, Store | None]]:
    """The folder of results and tables, which for an object store is a copy that is gone afterwards."""
    if not is_url(workspace):
        yield Path(workspace).absolute(), None
        return
    with temporary_folder() as folder:
        store = Store(workspace)
        fetch_results(store, folder)
        yield folder, store


def _executor(
    work: Work, ray: tuple[bool, str | None], watch: SweepWatch, has_locks: bool
) -> Executor:
    if not any(ray):
        return in_processes(work)
    from reptrt.pipeline.sweep.on_ray import on_ray

    return on_ray(ray[1], work, watch.say, one_first=not has_locks)


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
