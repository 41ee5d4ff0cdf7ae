"""Progress bars on the terminal; one line per unit of work, silent when nobody looks."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from reptrt.engines.foreign.text import visible


class ProgressBars:
    """Draws `progress(description, done, total)` calls; safe to call from any thread."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<24.24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, description: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of `description` are finished."""
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(
                escape(visible(description)), total=total
            )
        self._progress.update(self._tasks[description], completed=done, total=total)
