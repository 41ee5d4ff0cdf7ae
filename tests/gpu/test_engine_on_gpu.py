"""An engine on this machine's GPU: outputs, CUDA's clock, timings kept, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.device import find_gpu
from reptrt.engines.runtime.benchmark import measure_latency, measure_throughput
from reptrt.engines.runtime.engine_context import EngineError
from reptrt.engines.runtime.runners import OnnxRuntimeRunner, TensorRTRunner
from reptrt.engines.target import TARGETS, Backend, load_backend

pytestmark = pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU on this machine")

MAX_BATCH = 4


@dataclass(frozen=True)
class Built:
    """An engine of the tiny network for batches of 1 to 4, and what it was built from."""

    engine: Path
    onnx: Path
    backend: Backend


@pytest.fixture(scope="session")
def built(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    (onnx,) = finished.rglob("model.trt.onnx")
    gpu = find_gpu()
    assert gpu is not None
    target = TARGETS["tensorrt" if find_spec("tensorrt") else "tensorrt-rtx"]
    if target.compute_capabilities and gpu.compute_capability not in target.compute_capabilities:
        pytest.skip(f"{target.name} does not serve {gpu.name}, and TensorRT is not installed")
    engine = tmp_path_factory.mktemp("gpu") / "model.engine"
    options = BuildOptions(target.compute_capabilities, batch=(1, 1, MAX_BATCH))
    build_engine(onnx, engine, load_backend(target), options)
    return Built(engine, onnx, target.backend)


def images(batch: int) -> dict[str, Any]:
    random = np.random.default_rng(batch)
    return {"images": random.standard_normal((batch, 3, 32, 32)).astype(np.float32)}


def test_every_batch_agrees_with_onnx_runtime_with_a_graph_and_without(built: Built) -> None:
    reference = OnnxRuntimeRunner(built.onnx, optimize=False)
    with reference, TensorRTRunner(built.engine, built.backend) as runner:
        for batch in (1, MAX_BATCH, 1):
            expected = reference.infer(images(batch))["logits"]
            for _ in range(3):  # directly, then captured, then launched again
                actual = runner.infer(images(batch))["logits"]
                noise = np.square(expected - actual).sum() / np.square(expected).sum()
                assert 10 * np.log10(1 / max(noise, 1e-12)) >= 35


def test_a_batch_outside_the_profile_is_refused_and_the_next_one_runs(built: Built) -> None:
    with TensorRTRunner(built.engine, built.backend) as runner:
        with pytest.raises(EngineError, match="which it was built for"):
            runner.infer(images(MAX_BATCH + 1))
        assert runner.infer(images(1))["logits"].shape == (1, 2)


def test_device_time_is_part_of_the_time_with_copies(built: Built) -> None:
    with TensorRTRunner(built.engine, built.backend) as runner:
        latency = measure_latency(runner, images(1), min_seconds=0.5)
        throughput = measure_throughput(
            runner.execution, images(MAX_BATCH), MAX_BATCH, min_seconds=0.5
        )
    assert latency.device_only is not None
    assert 0 < latency.device_only.p50 < latency.p50 <= latency.p90 <= latency.p99
    assert throughput > 0


def test_memory_is_given_back(built: Built) -> None:
    for _ in range(20):
        with TensorRTRunner(built.engine, built.backend) as runner:
            runner.infer(images(MAX_BATCH))


def test_a_file_that_is_no_engine_is_one_line(built: Built, tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(built.engine.read_bytes()[:100])
    with pytest.raises(EngineError) as caught, TensorRTRunner(path, built.backend):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("tensorrt") is None, reason="TensorRT is not installed here")
def test_timings_are_kept_and_a_compatible_engine_runs_when_trusted(
    built: Built, tmp_path: Path
) -> None:
    trt = load_backend(TARGETS["tensorrt"])
    options = BuildOptions(
        batch=(1, 1, MAX_BATCH), timing_cache=tmp_path / "timings", version_compatible=True
    )
    for _ in range(2):
        build_engine(built.onnx, tmp_path / "m.engine", trt, options)
    (timings,) = (tmp_path / "timings").glob("*.cache")
    assert timings.stat().st_size > 0
    with TensorRTRunner(tmp_path / "m.engine", trusted=True) as runner:
        assert runner.infer(images(1))["logits"].shape == (1, 2)
