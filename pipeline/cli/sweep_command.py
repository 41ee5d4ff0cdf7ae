"""`reptrt sweep`: many cells, one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from reptrt.pipeline.cli.console import (
    GATE_FAILED,
    command_line,
    json_option,
    messages,
    output,
    print_json,
    print_path,
)
from reptrt.pipeline.cli.options import FILE, quiet_option

if TYPE_CHECKING:
    from reptrt.pipeline.sweep.grid import Cell, Sweep
    from reptrt.pipeline.sweep.table import Row

LOCAL = "local"
"""Ray's name of a cluster that it starts on this machine."""


@click.command(short_help="Run models, calibrators, bits, targets, seeds; one page.")
@click.argument("file", type=FILE)
@click.option(
    "--ray",
    is_flag=False,
    flag_value=LOCAL,
    metavar="[ADDRESS]",
    help="run cells as tasks of Ray, on this machine or the cluster at auto, HOST:PORT or ray://HOST:PORT",
)
@click.option("--address", help="of a Ray cluster, as behind --ray")
@click.option(
    "--workspace",
    default="build/sweep",
    help="folder that all nodes see, or an object store: s3://bucket/folder",
)
@click.option("--dry-run", is_flag=True, help="print the cells, hours and memory, and run nothing")
@click.option("--mlflow", "tracking", help="log each cell there too: MLflow's tracking URI")
@quiet_option
@json_option
def sweep(
    file: Path,
    ray: str | None,
    address: str | None,
    workspace: str,
    dry_run: bool,
    tracking: str | None,
    as_json: bool,
) -> None:
    """Run every cell of a grid: models, calibrators, bits, targets, seeds; one page.

    FILE is YAML. Cells that are finished are not run again; one that fails is a row with its reason. Leaves
    with 1 where a cell failed, or its gate.
    """
    from reptrt.pipeline.sweep.api import run_file
    from reptrt.pipeline.sweep.grid import cells_of, load_sweep

    loaded = load_sweep(file)
    cells = cells_of(loaded, file.parent)
    if dry_run:
        _show_plan(loaded, cells, workspace, as_json)
        return
    from reptrt.pipeline.sweep.screen import Screen

    is_quiet = click.get_current_context().meta["reptrt.quiet"]
    with Screen(Console(quiet=True) if is_quiet else messages, len(cells)) as screen:
        cluster = address or ray
        where = (cluster is not None, None if cluster == LOCAL else cluster)
        rows = run_file(loaded, cells, workspace, screen, command_line(), where, tracking)
    if as_json:
        from dataclasses import asdict

        print_json([asdict(row) for row in rows])
    else:
        output.print(_table(rows))
    print_path(messages, f"{workspace}/sweep.html")
    if any(row.status != "done" for row in rows):
        sys.exit(GATE_FAILED)


def _show_plan(loaded: Sweep, cells: Sequence[Cell], workspace: str, as_json: bool) -> None:
    from reptrt.pipeline.cli.console import print_table
    from reptrt.pipeline.sweep.api import opened
    from reptrt.pipeline.sweep.estimate import plan_cells, totals

    with opened(workspace) as (folder, _):
        planned = plan_cells(cells, folder, loaded.resources)
    whole = totals(planned, loaded)
    if as_json:
        from dataclasses import asdict

        print_json({"cells": [asdict(one) for one in planned], "totals": whole})
        return
    print_table(("cell", "state", "hours", "memory", "known from"), [
        (one.cell, one.state, "?" if one.hours is None else f"{one.hours:.2f}",
         f"{one.memory / 2**30:.1f} GiB", one.known_from)
        for one in planned
    ])  # fmt: skip
    output.print()
    for name, value in whole.items():
        output.print(f"{name}: {value}", highlight=False)


def _table(rows: Sequence[Row]) -> object:
    from rich.table import Table
    from rich.text import Text

    from reptrt.pipeline.report import number_format as write

    table = Table(box=None, pad_edge=False)
    for name in ("cell", "accuracy", "drop", "agreement", "SNR", "INT8", "took"):
        table.add_column(
            name,
            justify="left" if name == "cell" else "right",
            no_wrap=name != "cell",
            overflow="fold",
        )
    for row in rows:
        cells = (
            row.cell, write.percent(row.accuracy), write.number(row.drop, 2), write.percent(row.agreement),
            write.decibel(row.snr_db), write.milliseconds(row.milliseconds), write.duration(row.seconds),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
        if row.status != "done":
            table.add_row(Text(f"  {row.status}: {row.reason}".rstrip(": "), overflow="fold"))
    return table
