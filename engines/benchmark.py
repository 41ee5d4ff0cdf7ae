"""Latency of a runner, as percentiles of many single runs on one input.

Two runners are compared by turns (A B A B ...), so that a processor that heats up or is shared
slows both alike. What is measured is where the runner runs: the result names backend and device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.runners import Array, Runner

_MS_PER_SECOND = 1000.0


class BenchmarkError(ValueError):
    """The limits leave nothing to measure."""

    exit_code = 2


@dataclass(frozen=True)
class Latency:
    """Time of one inference, in milliseconds, over `iterations` runs."""

    p50: float
    p90: float
    p99: float
    mean: float
    iterations: int
    backend: str
    device: str


def measure_latency(
    runner: Runner,
    feed: Mapping[str, Array],
    warmup: int = 10,
    min_seconds: float = 2.0,
    max_iterations: int = 1000,
) -> Latency:
    """Time `runner.infer(feed)`, inside the runner's context, for at least one run.

    It stops after `min_seconds` of measuring or `max_iterations` runs, whichever is first.
    """
    return _measure([runner], [feed], warmup, min_seconds, max_iterations)[0]


def compare_latency(
    runners: tuple[Runner, Runner],
    feeds: tuple[Mapping[str, Array], Mapping[str, Array]],
    warmup: int = 10,
    min_seconds: float = 4.0,
    max_iterations: int = 1000,
) -> tuple[Latency, Latency]:
    """Time two runners by turns; both get the same number of runs, `max_iterations` at most."""
    first, second = _measure(runners, feeds, warmup, min_seconds, max_iterations)
    return first, second


def _measure(
    runners: Sequence[Runner],
    feeds: Sequence[Mapping[str, Array]],
    warmup: int,
    min_seconds: float,
    max_iterations: int,
) -> list[Latency]:
    if warmup < 0 or max_iterations < 1:
        raise BenchmarkError(
            f"warmup {warmup}, max_iterations {max_iterations}: warmup is 0 or more, "
            "max_iterations 1 or more"
        )
    for _ in range(warmup):
        for runner, feed in zip(runners, feeds, strict=True):
            runner.infer(feed)
    seconds: list[list[float]] = [[] for _ in runners]
    deadline = time.perf_counter() + min_seconds
    for _ in range(max_iterations):
        for runner, feed, times in zip(runners, feeds, seconds, strict=True):
            started = time.perf_counter()
            runner.infer(feed)
            times.append(time.perf_counter() - started)
        if time.perf_counter() >= deadline:
            break
    return [
        summarize_latency(times, runner.backend, runner.device)
        for runner, times in zip(runners, seconds, strict=True)
    ]


def summarize_latency(seconds: Sequence[float], backend: str, device: str) -> Latency:
    """Return the percentiles of single runs that took `seconds`."""
    milliseconds = np.asarray(seconds) * _MS_PER_SECOND
    p50, p90, p99 = (round(float(p), 4) for p in np.percentile(milliseconds, (50, 90, 99)))
    return Latency(
        p50=p50,
        p90=p90,
        p99=p99,
        mean=round(float(milliseconds.mean()), 4),
        iterations=len(seconds),
        backend=backend,
        device=device,
    )
