"""Latency of a runner, as percentiles of many single runs on one input, and throughput.

An engine is timed by CUDA events, on the GPU's clock: with the copies of inputs and outputs, and
without (`Latency.device_only`). Everything else is timed by the processor's clock around `infer`.

Two runners are compared by turns (A B A B ...), so that a processor that heats up or is shared
slows both alike. The result names backend and device of the runner.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from reptrt.engines.runtime.engine_context import EngineExecution, InferenceTime
from reptrt.engines.runtime.runners import Array, Runner

_MS_PER_SECOND = 1000.0
_WARMUP_SECONDS = 2.0
_PROBE = 20  # executions


class BenchmarkError(ValueError):
    """The limits leave nothing to measure."""

    exit_code = 2


@dataclass(frozen=True)
class Latency:
    """Time of one inference, in milliseconds, over `iterations` runs.

    `device_only` leaves out the copies to and from the GPU; None where there are none.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    iterations: int
    backend: str
    device: str
    device_only: Latency | None = None


@runtime_checkable
class GpuRunner(Protocol):
    """A runner whose runs the GPU times."""

    def time_inference(self, feed_dict: Mapping[str, Array]) -> InferenceTime:
        """Run once, and say how long the GPU took."""


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
    warm = time.perf_counter() + max(min_seconds, _WARMUP_SECONDS)
    for _ in range(warmup):
        for runner, feed in zip(runners, feeds, strict=True):
            runner.infer(feed)
        if time.perf_counter() >= warm:
            break
    times: list[list[InferenceTime]] = [[] for _ in runners]
    deadline = time.perf_counter() + min_seconds
    for _ in range(max_iterations):
        for runner, feed, measured in zip(runners, feeds, times, strict=True):
            measured.append(_time_once(runner, feed))
        if time.perf_counter() >= deadline:
            break
    return [_summarize(runner, measured) for runner, measured in zip(runners, times, strict=True)]


def _time_once(runner: Runner, feed: Mapping[str, Array]) -> InferenceTime:
    if isinstance(runner, GpuRunner):
        return runner.time_inference(feed)
    started = time.perf_counter()
    runner.infer(feed)
    milliseconds = (time.perf_counter() - started) * _MS_PER_SECOND
    return InferenceTime(milliseconds, milliseconds)


def _summarize(runner: Runner, times: Sequence[InferenceTime]) -> Latency:
    def summary(milliseconds: Sequence[float]) -> Latency:
        seconds = [value / _MS_PER_SECOND for value in milliseconds]
        return summarize_latency(seconds, runner.backend, runner.device)

    latency = summary([one.end_to_end for one in times])
    if not isinstance(runner, GpuRunner):
        return latency
    return replace(latency, device_only=summary([one.device_only for one in times]))


def measure_throughput(
    execution: EngineExecution, feed: Mapping[str, Array], batch: int, min_seconds: float = 2.0
) -> float:
    """Return images per second of back-to-back executions without copies.

    Args:
        execution: a loaded engine.
        feed: one batch.
        batch: images in it.
        min_seconds: about how long to measure.
    """
    probe = execution.time_back_to_back(feed, _PROBE)
    count = max(1, int(min_seconds * _MS_PER_SECOND * _PROBE / max(probe, 1e-6)))
    milliseconds = execution.time_back_to_back(feed, count)
    return _MS_PER_SECOND * batch * count / milliseconds


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
