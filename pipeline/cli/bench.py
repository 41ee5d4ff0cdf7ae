"""Latency of a file on its own: an engine on the GPU, or an ONNX model in ONNX Runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.graphs import GraphError, require_small_tensors
from reptrt.engines.foreign.limits import MAX_FEED_BYTES
from reptrt.engines.foreign.text import visible
from reptrt.engines.runtime.benchmark import Latency, measure_latency, measure_throughput
from reptrt.engines.runtime.runners import Array, OnnxRuntimeRunner, Runner, TensorRTRunner
from reptrt.engines.target import resolve_target

_SECONDS_PER_RUN = 60.0


class BenchInputError(ValueError):
    """The file is neither an engine nor an ONNX model, or cannot be measured like that."""

    exit_code = 2


@dataclass(frozen=True)
class Bench:
    """What was measured of one file.

    Attributes:
        latency: of one inference.
        batch: images in it.
        throughput: images per second, of an engine that is never idle; elsewhere of one inference
            after the other.
    """

    latency: Latency
    batch: int
    throughput: float


def bench_file(path: Path, batch: int, seconds: float, trusted: bool = False) -> Bench:
    """Time `path` on random images.

    Args:
        path: `.onnx`, or `.engine` (needs its GPU).
        batch: images per inference, where the file leaves it open.
        seconds: how long to measure.
        trusted: let a version-compatible engine run the code it carries.

    Raises:
        BenchInputError: another kind of file, or none; endless seconds; images that do not fit into
            memory.
    """
    if not 0 <= seconds < math.inf:
        raise BenchInputError(f"--seconds {seconds:g}: must be finite, and at least 0")
    if not path.is_file() or path.suffix not in (".onnx", ".engine"):
        raise BenchInputError(f"{path}: no such .onnx or .engine file")
    if path.suffix == ".onnx":
        _require_small(path, batch)
    runner: Runner = (
        OnnxRuntimeRunner(path, seconds_per_run=_SECONDS_PER_RUN)
        if path.suffix == ".onnx"
        else TensorRTRunner(path, resolve_target("auto").backend, trusted=trusted)
    )
    with reading(path, BenchInputError, "cannot be measured"):
        return _measure(runner, batch, seconds)


def _require_small(path: Path, batch: int) -> None:
    try:
        with reading(path, BenchInputError, "is no ONNX file that can be measured"):
            require_small_tensors(path, batch)
    except GraphError as error:
        raise BenchInputError(f"--batch {batch}: {error}") from error


def _measure(runner: Runner, batch: int, seconds: float) -> Bench:
    with runner:
        feed = _random_images(runner, batch)
        latency = measure_latency(runner, feed, min_seconds=seconds, max_iterations=100_000)
        images = len(next(iter(feed.values())))
        throughput = 1000 * images / latency.mean
        if isinstance(runner, TensorRTRunner):
            throughput = measure_throughput(runner.execution, feed, images, seconds)
        return Bench(latency, images, throughput)


def _random_images(runner: Runner, batch: int) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    specs = runner.input_metadata
    shapes = {
        name: [batch if side < 0 else side for side in spec.shape] for name, spec in specs.items()
    }
    needed = sum(4 * math.prod(shape) for shape in shapes.values())
    if needed > MAX_FEED_BYTES:
        raise BenchInputError(
            f"--batch {batch}: images of {needed / 1e9:.1f} GB, more than {MAX_FEED_BYTES / 1e9:.1f}"
            " GB; give a smaller one"
        )
    if not all(shapes.values()):
        raise BenchInputError("it has no input, or one that counts no images")
    return {
        name: generator.random(shape, dtype=np.float32).astype(specs[name].dtype)
        for name, shape in shapes.items()
    }


def bench_table(path: Path, bench: Bench) -> Table:
    """Percentiles in milliseconds and images per second; `on GPU` leaves the copies out."""
    latency, device_only = bench.latency, bench.latency.device_only
    title = Text(visible(path.name))
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    times = [latency.p50, latency.p90, latency.p99]
    headers = ["p50 ms", "p90 ms", "p99 ms"]
    if device_only is not None:
        times += [device_only.p50, device_only.p99]
        headers += ["p50 on GPU", "p99 on GPU"]
    for header in (*headers, "images/s", "runs"):
        table.add_column(header, justify="right")
    table.add_column("where")
    table.add_row(
        *[f"{value:.3f}" for value in times],
        f"{bench.throughput:.1f}",
        str(latency.iterations),
        f"{latency.backend}, {latency.device}",
    )
    return table
