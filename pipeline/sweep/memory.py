"""How much memory a cell asks for."""

from __future__ import annotations

from reptrt.pipeline.memory import memory_bound
from reptrt.pipeline.sweep.grid import Cell, Resources


def memory_of(cell: Cell, resources: Resources) -> int:
    """Bytes: what is stated, else what a run of the recipe takes at most."""
    return int(resources.memory or memory_bound(cell.recipe))
