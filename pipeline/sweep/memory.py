"""How much memory a cell asks for."""

from __future__ import annotations

from collections.abc import Iterable

from reptrt.pipeline.memory import memory_bound
from reptrt.pipeline.sweep.cell import CellResult
from reptrt.pipeline.sweep.grid import Cell, Resources

ROOM = 1.25
"""Times what a run of the same kind has used: seeds and bits differ a little."""


def memory_of(
    cell: Cell, resources: Resources, ended: Iterable[tuple[Cell, CellResult]] = ()
) -> int:
    """Bytes: what is stated, else what the last cells of its model and calibrator used, else what the recipe may hold.

    Args:
        cell: what asks.
        resources: of each cell.
        ended: cells that have ended, and how.
    """
    if resources.memory:
        return int(resources.memory)
    kind = (cell.recipe.model, cell.recipe.calibrator)
    used = [
        result.peak_bytes
        for other, result in ended
        if result.peak_bytes and (other.recipe.model, other.recipe.calibrator) == kind
    ]
    return int(ROOM * max(used)) if used else memory_bound(cell.recipe)
