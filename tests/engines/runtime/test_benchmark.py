from __future__ import annotations

import time

import numpy as np
import pytest

from reptrt.engines.runtime.benchmark import (
    BenchmarkError,
    compare_latency,
    measure_latency,
    summarize_latency,
)
from reptrt.engines.runtime.runners import OnnxRuntimeRunner


class _Recorder(OnnxRuntimeRunner):
    """A runner that only sleeps, and notes when it was called."""

    def __init__(self, name: str, calls: list[str], seconds: float = 0.0) -> None:
        self.name = name
        self.calls = calls
        self.seconds = seconds

    def infer(self, feed_dict):
        self.calls.append(self.name)
        time.sleep(self.seconds)
        return {}


def test_percentiles_are_those_of_the_single_runs():
    latency = summarize_latency([i / 1000 for i in range(101)], "onnxruntime", "CPU")
    assert (latency.p50, latency.p90, latency.p99, latency.mean) == (50.0, 90.0, 99.0, 50.0)
    assert latency.iterations == 101


def test_two_runners_are_timed_by_turns():
    calls: list[str] = []
    pair = (_Recorder("a", calls), _Recorder("b", calls))
    first, second = compare_latency(pair, ({}, {}), warmup=1, min_seconds=60, max_iterations=3)
    assert "".join(calls) == "abababab"
    assert first.iterations == second.iterations == 3


def test_the_slower_runner_is_slower():
    calls: list[str] = []
    pair = (_Recorder("fast", calls), _Recorder("slow", calls, seconds=0.005))
    fast, slow = compare_latency(pair, ({}, {}), warmup=0, min_seconds=0.05)
    assert slow.p50 >= 5.0 > fast.p50


def test_measuring_stops_in_time_and_runs_at_least_once():
    latency = measure_latency(_Recorder("a", []), {}, warmup=0, min_seconds=0.0)
    assert latency.iterations == 1


def test_a_real_model_reports_backend_and_processor(mixed_onnx):
    feed = {"images": np.zeros((1, 3, 16, 16), np.float32)}
    with OnnxRuntimeRunner(mixed_onnx(), num_threads=1) as runner:
        latency = measure_latency(runner, feed, warmup=1, min_seconds=0.05, max_iterations=20)
    assert 0 < latency.p50 <= latency.p90 <= latency.p99
    assert latency.backend.startswith("onnxruntime ")
    assert latency.device


def test_nothing_to_measure_is_refused():
    with pytest.raises(BenchmarkError, match="max_iterations 0"):
        measure_latency(_Recorder("a", []), {}, max_iterations=0)
