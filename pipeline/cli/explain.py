"""What a command that failed says, and the exit code that it leaves with."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import click
from rich.console import Console

from reptrt.engines.artifacts import system_refusal
from reptrt.engines.foreign.border import is_out_of_memory
from reptrt.engines.foreign.text import one_line, visible

BAD_INPUT = 2
CRASHED = 70
"""A fault of this program: never the code of a failed gate."""


def explain(error: BaseException, console: Console, in_flags: Callable[[str], str]) -> int:
    """Print one line on what the user can mend, a traceback on a fault of ours; return the code.

    Args:
        error: that a command ended with.
        console: where to.
        in_flags: names arguments in a message as the command line does.
    """
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        _say(console, visible(in_flags(str(error))))
        return code
    if is_out_of_memory(error):
        _say(
            console,
            f"there is not enough memory for this: {one_line(error)}; use fewer or smaller images,"
            " a smaller --batch-size or --max-memory, or a machine with more",
        )
        return BAD_INPUT
    refusal = system_refusal(error)
    if refusal is not None:
        _say(console, visible(refusal))
        return BAD_INPUT
    console.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
    _say(console, "this is a fault of reptrt, not of your input: please report the lines above")
    return CRASHED


def _say(console: Console, line: str) -> None:
    console.print(f"reptrt: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
