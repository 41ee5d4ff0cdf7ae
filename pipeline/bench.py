"""Latency of a file on its own: an engine on the GPU, or an ONNX model in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.table import Table

from engines.benchmark import Latency, measure_latency
from engines.runners import OnnxRuntimeRunner, Runner, TensorRTRunner
from engines.target import resolve_target


class BenchInputError(ValueError):
    """The file is neither an engine nor an ONNX model."""

    exit_code = 2


def bench_file(path: Path, batch: int, seconds: float) -> tuple[Latency, int]:
    """Time `path` on random images; return the latency and the images of one inference.

    Args:
        path: `.onnx`, or `.engine` (needs its GPU).
        batch: images per inference, where the file leaves it open.
        seconds: how long to measure.

    Raises:
        BenchInputError: another kind of file, or none.
    """
    if not path.exists() or path.suffix not in (".onnx", ".engine"):
        raise BenchInputError(f"{path}: no such .onnx or .engine file")
    runner: Runner = (
        OnnxRuntimeRunner(path)
        if path.suffix == ".onnx"
        else TensorRTRunner(path, resolve_target("auto").backend)
    )
    with runner:
        generator = np.random.default_rng(0)
        feed = {
            name: generator.random(
                [batch if side < 0 else side for side in spec.shape], dtype=np.float32
            ).astype(spec.dtype)
            for name, spec in runner.input_metadata.items()
        }
        latency = measure_latency(runner, feed, min_seconds=seconds, max_iterations=100_000)
        return latency, len(next(iter(feed.values())))


def bench_table(path: Path, latency: Latency, batch: int) -> Table:
    """Percentiles in milliseconds and images per second."""
    table = Table(box=None, pad_edge=False, title=path.name, title_justify="left")
    for header in ("p50 ms", "p90 ms", "p99 ms", "images/s", "runs"):
        table.add_column(header, justify="right")
    table.add_column("where")
    table.add_row(
        *[f"{value:.3f}" for value in (latency.p50, latency.p90, latency.p99)],
        f"{1000 * batch / latency.mean:.1f}",
        str(latency.iterations),
        f"{latency.backend}, {latency.device}",
    )
    return table
