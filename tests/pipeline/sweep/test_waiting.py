"""When the cells of a sweep may start."""

from __future__ import annotations

from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.sweep.grid import Cell
from reptrt.pipeline.sweep.waiting import LONGEST_PAUSE, Waiting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def cells(*names: str) -> list[Cell]:
    """Of the group that the first letter names."""
    return [Cell(name, name[0], Recipe(model="m"), {}) for name in names]


def popped(waiting: Waiting) -> list[str]:
    """Names of all that may start now."""
    found: list[str] = []
    while (cell := waiting.pop()) is not None:
        found.append(cell.name)
    return found


def test_cells_start_in_turn() -> None:
    waiting = Waiting(cells("a1", "b1", "a2", "a3", "b2"))
    assert waiting
    assert popped(waiting) == ["a1", "b1", "a2", "a3", "b2"]
    assert not waiting


def test_the_first_of_a_group_goes_alone_and_the_others_follow_its_end() -> None:
    every = cells("a1", "b1", "a2", "a3", "b2", "c1")
    waiting = Waiting(every, one_first=True)
    assert popped(waiting) == ["a1", "b1", "c1"]
    assert waiting
    waiting.release(every[1])
    assert popped(waiting) == ["b2"]
    waiting.release(every[0])
    assert popped(waiting) == ["a2", "a3"]
    waiting.release(every[2])
    assert not waiting


def test_a_lost_cell_is_tried_again_after_pauses_that_double() -> None:
    (cell,) = cells("a1")
    clock = Clock()
    waiting = Waiting([cell], 7, clock=clock)
    assert popped(waiting) == ["a1"]
    pauses = []
    while (pause := waiting.again(cell)) is not None:
        pauses.append(pause)
        clock.now += pause - 0.5
        assert waiting
        assert waiting.pop() is None
        clock.now += 1.0
        assert popped(waiting) == ["a1"]
    assert pauses == [2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE]
    assert not waiting


def test_no_retry_is_no_retry() -> None:
    (cell,) = cells("a1")
    waiting = Waiting([cell])
    assert waiting.pop() == cell
    assert waiting.again(cell) is None
