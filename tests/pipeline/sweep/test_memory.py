"""What a cell asks Ray for."""

from __future__ import annotations

from reptrt.pipeline.memory import memory_bound
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.sweep.cell import CellResult
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.sweep.memory import memory_of

GIB = 1 << 30


def cell(**fields: object) -> Cell:
    return Cell("x", "x", Recipe.model_validate({"model": "repvgg_a0", **fields}), {})


def ended(peak: int | None, **fields: object) -> tuple[Cell, CellResult]:
    return cell(**fields), CellResult("x", "0", "done", peak_bytes=peak)


def test_what_is_stated_is_asked_for() -> None:
    assert memory_of(cell(), Resources(memory=5), [ended(2 * GIB)]) == 5


def test_the_most_that_cells_of_its_kind_used_is_asked_for_with_room() -> None:
    others = [
        *(ended(GIB), ended(2 * GIB, seed=1), ended(None)),
        *(ended(8 * GIB, calibrator="mse"), ended(9 * GIB, model="mobileone_s0")),
    ]
    assert memory_of(cell(), Resources(), others) == 2.5 * GIB


def test_the_first_of_its_kind_asks_for_what_it_may_hold() -> None:
    others = [ended(GIB, model="mobileone_s0"), ended(None)]
    assert memory_of(cell(), Resources(), others) == memory_bound(cell().recipe)
