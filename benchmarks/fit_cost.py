"""Fit the constants of the cost model (engines/cost/constants.py) and say how far they are off.

    python benchmarks/fit_cost.py --data $REPTRT_DATA [--chart docs/cost.svg] [--v100]

Real engines (layer list, time of each layer, time of the whole) give the constants. A profiled layer
takes longer than the same one in a CUDA graph, so each engine's times are lowered by one figure until they
add up to its measured whole. Every engine is then predicted by constants that were fitted without it.
`--v100` fits the same form to 160,000 measured convolutions of another GPU: tile and overlap are from there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.cost_chart import draw_chart
from benchmarks.v100_tables import fit_tables
from reptrt.engines.cost.constants import FITTED, Constants
from reptrt.engines.cost.device_info import read_device_info
from reptrt.engines.cost.kernel_time import kernel_time, work_of
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.kernels import Kernel, parse_kernels

PRIOR = Constants(
    product_us=3.5, move_us=2.5, compute=0.7, compute_int8=0.7, image=0.3, depthwise=0.25, memory=0.8, move=0.7,
    reformat=0.45, image_pixels=0.15,
)  # fmt: skip
"""Where the search starts, and to which it is drawn where the engines say little."""

FREE = (
    "product_us", "move_us", "compute", "compute_int8", "image", "depthwise", "memory", "move", "reformat",
    "image_pixels",
)  # fmt: skip
PULL = 0.03
STEPS = 1500
CONFIDENCE = 2.776  # Student's t, 97.5 %, of the 4 degrees of freedom that 5 engines leave


@dataclass(frozen=True)
class Engine:
    """A measured engine: `microseconds` a kernel, lowered so that they add up to `whole`."""

    name: str
    sheet: DataSheet
    kernels: tuple[Kernel, ...]
    microseconds: tuple[float, ...]
    whole: float


def read_engine(folder: Path) -> Engine:
    """Read graph.json, profile.json and profile.metadata.json."""
    kernels = parse_kernels((folder / "graph.json").read_text())
    profile = json.loads((folder / "profile.json").read_text())[1:]
    metadata = json.loads((folder / "profile.metadata.json").read_text())
    runs = sorted(metadata["performance_summary"]["GPU Compute Time"])
    whole = 1e3 * runs[len(runs) // 2]
    timed = [
        (kernel, 1e3 * layer["medianMs"])
        for kernel, layer in zip(kernels, profile, strict=True)
        if work_of(kernel) != "none"
    ]
    profiling = (sum(time for _, time in timed) - whole) / len(timed)
    return Engine(
        folder.name,
        read_device_info(folder / "profile.metadata.json"),
        tuple(kernel for kernel, _ in timed),
        tuple(time - profiling for _, time in timed),
        whole,
    )


def predict(engine: Engine, constants: Constants) -> list[float]:
    """Microseconds of each kernel."""
    return [kernel_time(kernel, engine.sheet, constants).microseconds for kernel in engine.kernels]


def fit(engines: Sequence[Engine]) -> Constants:
    """Least error of kernels and of wholes, each in parts of its engine's time."""

    def loss(logs: np.ndarray) -> float:
        constants = at(logs)
        total = PULL * float(np.sum((logs - start) ** 2))
        for engine in engines:
            predicted = np.array(predict(engine, constants))
            off = float(np.abs(predicted - np.array(engine.microseconds)).sum()) / engine.whole
            total += (off + abs(math.log(predicted.sum() / engine.whole))) / len(engines)
        return total

    start = np.log([getattr(PRIOR, name) for name in FREE])
    return at(search(loss, start))


def at(logs: np.ndarray) -> Constants:
    """Constants from the logarithms of the free ones."""
    return replace(PRIOR, **dict(zip(FREE, np.exp(logs).tolist(), strict=True)))


def search(
    loss: Callable[[np.ndarray], float], start: np.ndarray, steps: int = STEPS
) -> np.ndarray:
    """Random steps that grow with success: the loss has kinks, and few dimensions."""
    generator = np.random.default_rng(0)
    best, least, size = start, loss(start), 0.3
    for _ in range(steps):
        candidate = best + size * generator.standard_normal(len(start))
        found = loss(candidate)
        if found < least:
            best, least, size = candidate, found, min(0.5, 1.3 * size)
        else:
            size = max(0.01, 0.985 * size)
    return best


def leave_one_out(engines: Sequence[Engine]) -> dict[str, dict[str, float]]:
    """Predicted and measured milliseconds of each engine, by a fit that never saw it."""
    rows = {}
    for engine in engines:
        constants = fit([other for other in engines if other is not engine])
        predicted = sum(predict(engine, constants))
        rows[engine.name] = {"predicted": predicted / 1e3, "measured": engine.whole / 1e3}
    return rows


def main() -> None:
    """Print constants, residuals and the interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--v100", action="store_true")
    arguments = parser.parse_args()
    folders = sorted(path.parent for path in arguments.data.glob("engines/*/graph.json"))
    engines = [read_engine(folder) for folder in folders]
    constants = fit(engines)
    for name, value in asdict(constants).items():
        print(f"    {name}={value if isinstance(value, tuple) else round(value, 3)},")
    rows = leave_one_out(engines)
    for engine in engines:
        row = rows[engine.name]
        stored = sum(predict(engine, FITTED)) / engine.whole
        print(
            f"{engine.name:36s} measured {row['measured']:.3f} ms, never seen "
            f"{row['predicted']:.3f} ms ({row['predicted'] / row['measured']:.2f}); "
            f"as stored {stored:.2f}"
        )
    logs = [math.log(row["predicted"] / row["measured"]) for row in rows.values()]
    width = CONFIDENCE * float(np.sqrt(np.mean(np.square(logs)) * (1 + 1 / len(logs))))
    print(f"95 % interval of a new engine: a factor of {math.exp(width):.2f}")
    if arguments.v100:
        fit_tables(arguments.data / "engines", search)
    if arguments.chart:
        points = [
            (engine, kernel, predicted, time)
            for engine in engines
            for kernel, predicted, time in zip(
                engine.kernels, predict(engine, FITTED), engine.microseconds, strict=True
            )
        ]
        draw_chart(
            [
                (one.name, work_of(kernel), predicted, time)
                for one, kernel, predicted, time in points
            ],
            rows,
            arguments.chart,
        )


if __name__ == "__main__":
    main()
