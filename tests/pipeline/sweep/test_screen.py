"""What a sweep shows on a terminal, and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from reptrt.pipeline.sweep.cell import CellProgress, CellResult
from reptrt.pipeline.sweep.screen import Screen


def shown(is_terminal: bool, *events: CellProgress | CellResult) -> str:
    """Everything that is written for three cells."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=140, color_system=None)
    with Screen(console, 3) as screen:
        for event in events:
            if isinstance(event, CellProgress):
                screen.progress(event)
            else:
                screen.finished(event)
    return stream.getvalue().replace("\u202f", " ").replace("\xa0", " ")


def test_a_terminal_sees_cell_node_work_share_and_time_left() -> None:
    text = shown(
        True,
        CellProgress("net-mse", "10.0.0.7", "calibrate", None, 30.0),
        CellProgress("net-mse", "10.0.0.7", "observe activations", 0.0, 40.0),
        CellProgress("net-mse", "10.0.0.7", "observe activations", 0.25, 50.0),
        CellResult("net-mae", "0", "done", seconds=5.0),
    )
    (row,) = {line.strip() for line in text.splitlines() if "25 %" in line}
    words = ["net-mse", "10.0.0.7", "observe activations", "25 %", "30.0 s", "50.0 s"]
    assert [word for word in words if word in row] == words
    assert "1 of 3 cells" in text


def test_a_log_gets_a_line_for_each_cell_that_ends() -> None:
    text = shown(
        False,
        CellProgress("net-mse", "here", "calibrate", None, 30.0),
        CellResult("net-mae", "0", "done", seconds=5.0),
        CellResult("net-mse", "1", "failed", "no\x1b such image", seconds=61.0),
    )
    assert text.splitlines() == [
        "1/3 net-mae: done, 5.0 s",
        "2/3 net-mse: failed, 1 min 01 s: no? such image",
    ]


def test_a_log_says_where_cells_are_and_how_they_end() -> None:
    log, now = io.StringIO(), [0.0]
    with Screen(Console(file=log), 2, lambda: now[0]) as screen:
        for now[0] in (5.0, 12.0, 15.0, 30.0):
            screen.progress(CellProgress("a/minmax", "node", "calibrate", now[0] / 100))
        screen.finished(CellResult("a/minmax", "key", "failed", "no\x1b memory", seconds=31.0))
        now[0] = 45.0
        screen.progress(CellProgress("b/mse", "node", "still at work"))
    assert log.getvalue().replace("\u00a0", " ").splitlines() == [
        "0/2 a/minmax: calibrate 12 %",
        "0/2 a/minmax: calibrate 30 %",
        "1/2 a/minmax: failed, 31.0 s: no? memory",
        "1/2 b/mse: still at work",
    ]
