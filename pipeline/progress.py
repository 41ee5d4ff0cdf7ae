"""Progress: bars on a terminal, and a line now and then in a log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
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
from reptrt.pipeline.workspace.stage import STARTED, WAITS

_LOG_SECONDS = 30.0
"""Between two lines on the same work in a log."""
_QUIET_SECONDS = 45.0
"""After which a log says that work goes on: it is never silent for a minute."""
_STILL = "still at work"


class ProgressBars:
    """Shows `progress(description, done, total)` calls; safe to call from any thread.

    Args:
        console: where to; without a terminal it gets a line when work begins, then one every 30 s, and one where
            nothing was said for 45 s.
        quiet: show nothing.
        clock: seconds.
    """

    def __init__(
        self, console: Console, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock, self._start = console, clock, clock()
        self._is_log = not (quiet or console.is_terminal)
        self._said: dict[str, float] = {}
        self._last, self._last_at = "", self._start
        self._ended = threading.Event()
        self._progress = Progress(
            TextColumn("{task.description:<24.24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        if self._is_log:
            threading.Thread(target=self._keep_alive, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._progress.stop()

    def __call__(self, description: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of `description` are finished."""
        if self._is_log:
            self._write_line(description, done, total)
            return
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(
                escape(visible(description)), total=total
            )
        self._progress.update(self._tasks[description], completed=done, total=total)

    def _write_line(self, description: str, done: int, total: int | None) -> None:
        now = self._clock()
        if now - self._said.get(description, -_LOG_SECONDS) < _LOG_SECONDS:
            return
        self._said[description] = now
        self._write(f"{description}: {done}/{total}" if total else f"{description}: {done}")

    def _keep_alive(self) -> None:
        while not self._ended.wait(1.0):
            self.say_if_quiet()

    def say_if_quiet(self) -> None:
        """Repeat the last line where nothing has been written for 45 s."""
        if self._clock() - self._last_at >= _QUIET_SECONDS:
            self._write(f"{_STILL}: {self._last}" if self._last else _STILL)

    def say(self, text: str) -> None:
        """Write a line, in a log only: on a terminal bars tell."""
        if self._is_log:
            self._write(text)

    def _write(self, text: str) -> None:
        self._last, self._last_at = text.removeprefix(_STILL).removeprefix(": "), self._clock()
        minutes, seconds = divmod(int(self._clock() - self._start), 60)
        line = f"[{minutes}:{seconds:02}] {visible(text)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class StageLines(logging.Handler):
    """Lets a log of `progress` show when a stage begins or waits, as that stage's own log record says."""

    def __init__(self, progress: ProgressBars) -> None:
        super().__init__(logging.INFO)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Show the record where a stage begins or waits."""
        if record.msg in (STARTED, WAITS):
            self._progress.say(record.getMessage())
