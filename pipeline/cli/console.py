"""What the commands share: the two consoles, exit codes, and how paths and tables are shown."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from reptrt.engines.foreign.text import visible

GATE_FAILED = 1
INTERRUPTED = 130

NOBODY_READS = 141  # as a shell says that SIGPIPE ended a process


class Terminal(Console):
    """A console of rich whose reader may leave before the end, as `head` does."""

    def on_broken_pipe(self) -> None:
        """Let whoever called know; rich's own leaves with 1, the code of a failed gate."""
        raise BrokenPipeError


output = Terminal(emoji=False)
messages = Terminal(stderr=True, emoji=False)


def show_what_fits() -> None:
    """Show `?` for characters that the terminal's encoding lacks, such as arrows in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def leave_unread() -> NoReturn:
    """Leave as a process does that SIGPIPE ends; Python would complain when it closes its streams."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.exit(NOBODY_READS)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="print JSON, which scripts can read"
)
"""Every command has it; what is printed for people goes to stderr then, or is left out."""


def print_json(content: Any) -> None:
    """Print `content`, which is of JSON's types, to stdout."""
    print(json.dumps(content, indent=2))


def print_path(console: Console, path: Path | str, before: str = "") -> None:
    """Print `path` on one line, so that it can be copied."""
    line = visible(f"{before}{path}")
    console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of plain text below `header`."""
    first, *others = header
    table = Table(Column(first, no_wrap=True), *others, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    output.print(table)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool) -> None:
    """Print a table, or in JSON a list with one object per row, whose keys are `header`."""
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table(header, rows)


def command_line() -> str:
    """What the user typed, as it can be typed again."""
    return shlex.join(["reptrt", *sys.argv[1:]])
