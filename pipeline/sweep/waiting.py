"""Cells of a sweep that have not started, and when they may: in turn, behind another one, or after a pause."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from reptrt.pipeline.sweep.grid import Cell

PAUSE_SECONDS, LONGEST_PAUSE = 2.0, 60.0
"""Before a second try, twice as long before each further one, and at most."""


class Waiting:
    """Cells that have not started, or are to be tried again.

    Args:
        cells: in the order in which they start.
        retries: of each.
        one_first: hold the cells of a group back until its first one has ended: where nothing else keeps them
            from making what they share at the same time.
        clock: seconds.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        retries: int = 0,
        one_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retries, self._clock = retries, clock
        self._tries: Counter[str] = Counter()
        self._pausing: list[tuple[float, Cell]] = []
        self._behind: dict[str, list[Cell]] = {}
        first = {cell.group: cell.name for cell in reversed(cells)}
        self._ready: list[Cell] = []
        for cell in reversed(cells):  # the last one starts first
            if one_first and cell.name != first[cell.group]:
                self._behind.setdefault(cell.group, []).append(cell)
            else:
                self._ready.append(cell)

    def __bool__(self) -> bool:
        """Whether there is a cell."""
        return bool(self._ready or self._pausing or self._behind)

    def pop(self) -> Cell | None:
        """The next cell that may start now."""
        now = self._clock()
        for due in [one for one in self._pausing if one[0] <= now]:
            self._pausing.remove(due)
            self._ready.append(due[1])
        return self._ready.pop() if self._ready else None

    def again(self, cell: Cell) -> float | None:
        """Seconds after which `cell`, which was lost, is tried again; None where that was its last try."""
        self._tries[cell.name] += 1
        if self._tries[cell.name] > self._retries:
            return None
        pause = min(LONGEST_PAUSE, PAUSE_SECONDS * (1 << self._tries[cell.name] - 1))
        self._pausing.append((self._clock() + pause, cell))
        return pause

    def release(self, cell: Cell) -> None:
        """Let those start that wait for `cell`, which has ended."""
        self._ready += self._behind.pop(cell.group, [])
