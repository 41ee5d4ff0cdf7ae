"""What the commands share: the two consoles, exit codes, and how paths and tables are shown."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from reptrt.engines.foreign.text import visible

GATE_FAILED = 1
INTERRUPTED = 130

output = Console(emoji=False)
messages = Console(stderr=True, emoji=False)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="print JSON, which scripts can read"
)
"""Every command has it; what is printed for people goes to stderr then, or is left out."""


def print_json(content: Any) -> None:
    """Print `content`, which is of JSON's types, to stdout."""
    print(json.dumps(content, indent=2))


def print_path(console: Console, path: Path, before: str = "") -> None:
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
