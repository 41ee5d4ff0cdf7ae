"""What Ray adds to a cell, and how long a sweep takes on nodes that are lost.

python benchmarks/sweep_overhead.py --cells 1000,10000
python benchmarks/sweep_overhead.py --simulate --cells 1000 --measured build/sweep/sweep.csv
"""

from __future__ import annotations

import argparse
import csv
import heapq
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.sweep.api import Silent
from reptrt.pipeline.sweep.cell import CellProgress, CellResult
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.sweep.on_ray import on_ray
from reptrt.pipeline.sweep.run import run_sweep

NODES = (1, 4, 16, 64)
MEASURED = (649.0, 78.0, 85.0, 139.0, 93.0, 135.0, 55.0)
"""Seconds of the whole runs that docs/effort.md lists, on two idle cores: cells are as long as one of them."""
_MIB = 1 << 10


def empty(
    cell: Cell,
    resources: Resources,
    node: str,
    watch: Callable[[CellProgress], None],
) -> CellResult:
    """A cell without work."""
    return CellResult(cell.name, cell.key, "done", node=node)


def measure(count: int) -> None:
    """Print milliseconds a cell and the driver's memory for `count` empty cells."""
    cells = [Cell(f"cell-{i}", f"cell-{i}", Recipe(model="m", seed=i), {}) for i in range(count)]
    execute = on_ray(None, empty)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        run_sweep(cells, Path(folder), Resources(memory=1 << 20), Silent(), execute)
        seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    print(f"{count} cells: {1e3 * seconds / count:.1f} ms a cell, driver {peak:.0f} MiB at most")


def simulate(
    lengths: Sequence[float], nodes: int, lost: int, resumed: float, rng: random.Random
) -> tuple[float, float]:
    """Hours to the last cell, and the share of the nodes' time that was work.

    Args:
        lengths: seconds of each cell.
        nodes: that run one cell at a time.
        lost: of them, each at a random moment of the first half.
        resumed: share of a lost cell's work that its blocks keep.
        rng: chooses the moments.
    """
    whole = sum(lengths) / nodes
    ends = {
        node: rng.uniform(0, whole / 2) if node < lost else float("inf") for node in range(nodes)
    }
    free = [(0.0, node) for node in range(nodes)]
    heapq.heapify(free)
    waiting, latest, alive = list(reversed(lengths)), 0.0, 0.0
    while waiting:
        now, node = heapq.heappop(free)
        if now >= ends[node]:
            continue
        length = waiting.pop()
        if now + length > ends[node]:
            waiting.append(length - resumed * (ends[node] - now))
            continue
        latest = max(latest, now + length)
        heapq.heappush(free, (now + length, node))
    alive = sum(min(end, latest) for end in ends.values())
    return latest / 3600, sum(lengths) / alive


def read_seconds(path: Path) -> list[float]:
    """What the cells of a sweep took that ended well."""
    with path.open(newline="") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file) if row["status"] == "done"]


def main() -> None:
    """Measure, or simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="1000")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument(
        "--measured", type=Path, help="sweep.csv of a sweep whose cells' seconds are drawn"
    )
    options = parser.parse_args()
    counts = [int(part) for part in options.cells.split(",")]
    if not options.simulate:
        for count in counts:
            measure(count)
        return
    rng = random.Random(0)
    measured = read_seconds(options.measured) if options.measured else MEASURED
    lengths = rng.choices(measured, k=counts[0])
    print("nodes, lost, hours, efficiency")
    for nodes in NODES:
        for lost in (0, max(nodes // 10, 1)) if nodes > 1 else (0,):
            hours, share = simulate(lengths, nodes, lost, 0.9, rng)
            print(f"{nodes}, {lost}, {hours:.2f}, {100 * share:.1f} %")


if __name__ == "__main__":
    main()
