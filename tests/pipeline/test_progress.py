"""Progress: bars on a terminal, lines in a log, nothing when it is not wanted."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from reptrt.pipeline.progress import ProgressBars, StageLines
from reptrt.pipeline.workspace.stage import STARTED


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def test_a_log_gets_a_line_when_work_begins_and_one_every_half_minute(screen: io.StringIO) -> None:
    clock = Clock()
    with ProgressBars(Console(file=screen), clock=clock) as progress:
        for done in range(100):
            clock.now = float(done)
            progress("calibrate", done, 100)
        progress("download\x1b[2J", 5, None)
    assert screen.getvalue().splitlines() == [
        "[0:00] calibrate: 0/100",
        "[0:30] calibrate: 30/100",
        "[1:00] calibrate: 60/100",
        "[1:30] calibrate: 90/100",
        "[1:39] download?[2J: 5",
    ]


def test_a_log_is_never_silent_for_a_minute(screen: io.StringIO) -> None:
    clock = Clock()
    with ProgressBars(Console(file=screen), clock=clock) as progress:
        progress("build", 1, 2)
        for now in range(100):
            clock.now = float(now)
            progress.say_if_quiet()
    assert screen.getvalue().splitlines() == [
        "[0:00] build: 1/2", "[0:45] still at work: build: 1/2", "[1:30] still at work: build: 1/2",
    ]  # fmt: skip


def test_a_log_says_that_work_goes_on_before_any_is_named(screen: io.StringIO) -> None:
    clock = Clock()
    with ProgressBars(Console(file=screen), clock=clock) as progress:
        for clock.now in (44.0, 45.0, 46.0, 90.0):
            progress.say_if_quiet()
    assert screen.getvalue().splitlines() == ["[0:45] still at work", "[1:30] still at work"]


def test_quiet_shows_nothing(screen: io.StringIO) -> None:
    for console in (Console(file=screen), Console(file=screen, force_terminal=True)):
        with ProgressBars(console, quiet=True) as progress:
            progress("calibrate", 1, 2)
    assert screen.getvalue().strip("\x1b[?25lh\n") == ""


def test_a_terminal_gets_a_bar(screen: io.StringIO) -> None:
    with ProgressBars(Console(file=screen, force_terminal=True, width=100)) as progress:
        progress("calibrate", 1, 2)
    assert "1/2" in screen.getvalue()
    assert "[0:00]" not in screen.getvalue()


def test_a_log_says_when_a_stage_begins(screen: io.StringIO) -> None:
    logger = logging.getLogger("reptrt.a_test")
    with ProgressBars(Console(file=screen), clock=Clock()) as progress:
        lines = StageLines(progress)
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
        logger.info(STARTED, "calibrate")
        logger.info("%s: finished in %.1f s", "calibrate", 1.0)
        logger.removeHandler(lines)
    assert screen.getvalue() == "[0:00] calibrate: started\n"
