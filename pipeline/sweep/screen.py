"""A sweep on the terminal: a line for each cell that runs; in a log, a line now and then and when one ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reptrt.engines.foreign.text import visible
from reptrt.pipeline.report.number_format import duration
from reptrt.pipeline.sweep.cell import CellProgress, CellResult

_SHOWN = 12
_LOG_SECONDS = 10.0
"""Between two lines of a log on where cells are; each cell says it every 45 s at least."""


class Screen:
    """Watches a sweep of `total` cells.

    Args:
        console: where to.
        total: cells.
        clock: seconds.
    """

    def __init__(
        self, console: Console, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._total, self._clock = console, total, clock
        self._running: dict[str, CellProgress] = {}
        self._begun: dict[str, float] = {}
        self._ended: list[CellResult] = []
        self._started = self._said_at = clock()
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: CellProgress) -> None:
        """Show where a cell is."""
        before = self._running.get(progress.cell)
        if before is None or before.work != progress.work:
            self._begun[progress.cell] = progress.seconds
        self._running[progress.cell] = progress
        if not self._console.is_terminal and self._clock() - self._said_at >= _LOG_SECONDS:
            share = "" if progress.share is None else f" {100 * progress.share:.0f} %"
            self._write(f"{progress.cell}: {progress.work}{share}")
        self._draw()

    def finished(self, result: CellResult) -> None:
        """Show how a cell ended."""
        self._running.pop(result.cell, None)
        self._ended.append(result)
        if not self._console.is_terminal:
            reason = f": {result.reason}" if result.reason else ""
            self._write(f"{result.cell}: {result.status}, {duration(result.seconds)}{reason}")
        self._draw()

    def _write(self, line: str) -> None:
        self._said_at = self._clock()
        text = visible(f"{len(self._ended)}/{self._total} {line}")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        if not self._console.is_terminal:
            return
        table = Table("cell", "node", "work", "done", "left", "for", box=None, pad_edge=False)
        for one in list(self._running.values())[:_SHOWN]:
            share = "" if one.share is None else f"{100 * one.share:.0f} %"
            table.add_row(
                *(
                    Text(visible(part))
                    for part in (
                        one.cell,
                        one.node,
                        one.work,
                        share,
                        self._left(one),
                        duration(one.seconds),
                    )
                )
            )
        left = self._time_left()
        line = f"{len(self._ended)} of {self._total} cells" + (
            f", about {left} left" if left else ""
        )
        self._live.update(Group(table, Text(line)))

    def _left(self, progress: CellProgress) -> str:
        """Time that the present work of a cell will take, by its pace so far."""
        spent = progress.seconds - self._begun[progress.cell]
        if not progress.share or spent <= 0:
            return ""
        return duration(spent * (1 - progress.share) / progress.share)

    def _time_left(self) -> str:
        """By the pace so far; finished ones of a former sweep took no time and do not count."""
        ran = sum(result.seconds > 0 for result in self._ended)
        if not ran:
            return ""
        pace = (self._clock() - self._started) / ran
        return duration(pace * (self._total - len(self._ended)))
