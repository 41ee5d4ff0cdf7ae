"""`reptrt cost`: predicted milliseconds of an engine, kernel by kernel, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reptrt.engines.foreign.text import one_line
from reptrt.engines.target import resolve_target
from reptrt.pipeline.cli.console import json_option, output, print_json
from reptrt.pipeline.cli.options import FILE

if TYPE_CHECKING:
    from reptrt.engines.cost.estimate import EngineCost
    from reptrt.engines.cost.sources import Layers
    from reptrt.engines.data_sheet import DataSheet

SWEPT = (1, 2, 4, 8, 16, 32)
_SHOWN = 15
_LONGEST_NAME = 60


@click.command("cost")
@click.argument("file", type=FILE)
@click.option("--target", "target_name", help="GPU to predict for (`reptrt targets`)")
@click.option(
    "--device-info",
    type=FILE,
    help="profile.metadata.json that describes the GPU, instead of a target's data sheet",
)
@click.option("--batch", type=click.IntRange(1, 4096), help="images at once; default: the file's")
@click.option("--sweep", type=click.Choice(["batch"]), help="a table over batches")
@json_option
def cost(
    file: Path,
    target_name: str | None,
    device_info: Path | None,
    batch: int | None,
    sweep: str | None,
    as_json: bool,
) -> None:
    """Predict the milliseconds of an engine, kernel by kernel.

    FILE is a .onnx, the layer list of an engine (graph.json), or the folder of a run (fusion.json).
    A model is compiled for a TensorRT-RTX target, and predicted by fusion rules for others.
    """
    from reptrt.engines.cost.choose_sheet import choose_sheet
    from reptrt.engines.cost.estimate import estimate_cost
    from reptrt.engines.cost.result import cost_result
    from reptrt.engines.cost.sources import read_layers

    name = target_name or (None if device_info else "tensorrt-rtx")
    target = None if name is None else resolve_target(name)
    sheet = choose_sheet(target, device_info)
    layers = read_layers(file, target, sheet)
    if sweep:
        batches = SWEPT if batch is None else tuple(sorted({*SWEPT, batch}))
        _show_sweep(layers, sheet, batches, as_json, output)
        return
    layers = layers.at_batch(batch or layers.batch)
    predicted = estimate_cost(layers.kernels, sheet)
    if as_json:
        print_json(cost_result(predicted, layers.batch, layers.origin))
        return
    _show(predicted, layers, output)


def _show(predicted: EngineCost, layers: Layers, output: Console) -> None:
    """Print the whole, then the slowest kernels."""
    output.print(
        f"{predicted.milliseconds:.3f} ms predicted ({predicted.low:.3f} to {predicted.high:.3f}) on"
        f" {_shown(predicted.gpu)} at batch {layers.batch}: {len(predicted.kernels)} kernels,"
        f" {predicted.megabytes:.1f} MB, mostly bound by {predicted.bound}",
        highlight=False,
        soft_wrap=True,
    )
    output.print(f"{_shown(layers.origin)}; times are a model's (docs/cost.md)", highlight=False)
    table = Table(box=None, pad_edge=False)
    for header in ("us", "MB", "GOP"):
        table.add_column(header, justify="right", min_width=6, no_wrap=True)
    for header in ("type", "bound by"):
        table.add_column(header, min_width=8, no_wrap=True)
    table.add_column("kernel", no_wrap=True, overflow="ellipsis")
    for one in predicted.slowest_first[:_SHOWN]:
        table.add_row(
            f"{one.microseconds:.1f}", f"{one.megabytes:.2f}", f"{one.gigaoperations:.2f}",
            _shown(one.dtype), one.bound, _shown(one.name),
        )  # fmt: skip
    output.print(table)
    if len(predicted.kernels) > _SHOWN:
        output.print(f"and {len(predicted.kernels) - _SHOWN} faster ones; --json lists all")


def _show_sweep(
    layers: Layers, sheet: DataSheet, batches: Sequence[int], as_json: bool, output: Console
) -> None:
    """Print one line a batch."""
    from reptrt.engines.cost.estimate import estimate_cost
    from reptrt.engines.cost.result import cost_result

    costs = {batch: estimate_cost(layers.at_batch(batch).kernels, sheet) for batch in batches}
    if as_json:
        rows = [
            {
                key: value
                for key, value in cost_result(one, batch, layers.origin).items()
                if key != "kernels"
            }
            for batch, one in costs.items()
        ]
        print_json(rows)
        return
    table = Table(
        box=None, pad_edge=False, title=f"{_shown(sheet.gpu)}: predicted", title_justify="left"
    )
    for header in ("batch", "ms", "low", "high", "images/s", "MB"):
        table.add_column(header, justify="right")
    table.add_column("mostly bound by")
    for batch, one in costs.items():
        table.add_row(
            str(batch), f"{one.milliseconds:.3f}", f"{one.low:.3f}", f"{one.high:.3f}",
            f"{1e3 * batch / one.milliseconds:.0f}", f"{one.megabytes:.1f}", one.bound,
        )  # fmt: skip
    output.print(table)


def _shown(text: str) -> str:
    """Text of a file, for a table: without markup, and short."""
    return escape(one_line(text, _LONGEST_NAME))
