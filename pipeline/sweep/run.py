"""Run the cells of a sweep: those that are finished are left alone, one bad cell stops no other."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from reptrt.pipeline.sweep.cell import CellProgress, CellResult, Watch, finished_result
from reptrt.pipeline.sweep.grid import Cell, Resources


class SweepWatch(Protocol):
    """Who looks at a sweep."""

    def say(self, line: str) -> None:
        """Something about all of it."""

    def progress(self, progress: CellProgress) -> None:
        """A cell has advanced."""

    def finished(self, result: CellResult) -> None:
        """A cell has ended."""


Work = Callable[[Cell, Resources, str, Watch], CellResult]
"""Runs one cell, on the node of that name: `run_cell` in a folder, `run_in_store` in an object store."""
Executor = Callable[[Sequence[Cell], Resources, SweepWatch], Iterator[CellResult]]
"""Runs cells, in any order, and yields the result of each as it ends."""


def run_sweep(
    cells: Sequence[Cell],
    workspace: Path,
    resources: Resources,
    watch: SweepWatch,
    execute: Executor,
) -> list[CellResult]:
    """Results of all cells, in their order.

    Args:
        cells: what to run.
        workspace: folder that holds the results of former sweeps.
        resources: of each cell.
        watch: told as cells advance and end.
        execute: `in_processes(work)`, or `reptrt.pipeline.sweep.on_ray.on_ray(address, work)`.
    """
    found: dict[str, CellResult] = {}
    for cell in cells:
        result = finished_result(workspace, cell)
        if result is not None:
            found[cell.name] = result
            watch.finished(result)
    left = [cell for cell in cells if cell.name not in found]
    for result in execute(left, resources, watch):
        found[result.cell] = result
        watch.finished(result)
    return [found[cell.name] for cell in cells]


def in_processes(work: Work) -> Executor:
    """An executor that runs one cell after the other on this machine."""

    def execute(
        cells: Sequence[Cell], resources: Resources, watch: SweepWatch
    ) -> Iterator[CellResult]:
        node = socket.gethostname()
        for cell in cells:
            yield work(cell, resources, node, watch.progress)

    return execute
