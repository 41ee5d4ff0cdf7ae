"""The border to TensorRT's runtime, with an engine that adds one and a stream that keeps a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reptrt.engines.runtime.benchmark import measure_latency, measure_throughput
from reptrt.engines.runtime.cuda_stream import Buffer
from reptrt.engines.runtime.engine_context import EngineError, EngineExecution
from reptrt.engines.runtime.runners import TensorRTRunner

INPUT, OUTPUT = "INPUT", "OUTPUT"
Array = np.ndarray[Any, Any]


class Stream:
    """A CudaStream on the host: device memory is another array; every mark is 1 ms later."""

    name, handle = "record", 7

    def __init__(self, captures: bool = True) -> None:
        self.calls: list[str] = []
        self.captures = captures
        self.live: dict[int, tuple[Array, Array]] = {}
        self.clock = 0.0
        self.captured: list[Callable[[], None]] | None = None

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        address = 100 + len(self.calls)
        self.calls.append(f"buffer {list(shape)} {dtype}")
        self.live[address] = (np.zeros(shape, dtype), np.zeros(shape, dtype))
        return Buffer(self.live[address][0], address, address, address)

    def free(self, buffer: Buffer) -> None:
        self.calls.append("free")
        del self.live[buffer.address]

    def upload(self, buffer: Buffer) -> None:
        self.calls.append("upload")
        self.live[buffer.address][1][...] = buffer.host

    def download(self, buffer: Buffer) -> None:
        self.calls.append("download")
        buffer.host[...] = self.live[buffer.address][1]

    def synchronize(self) -> None:
        self.calls.append("wait")

    def event(self) -> list[float]:
        return [0.0]

    def record(self, event: list[float]) -> None:
        self.clock += 1
        event[0] = self.clock

    def milliseconds(self, start: list[float], end: list[float]) -> float:
        return end[0] - start[0]

    def capture(self, work: Callable[[], None]) -> list[Callable[[], None]] | None:
        self.calls.append("capture")
        self.captured = []
        work()
        graph, self.captured = self.captured, None
        return graph if self.captures else None

    def enqueue(self, kernel: Callable[[], None]) -> None:
        if self.captured is not None:
            self.captured.append(kernel)
        else:
            self.calls.append("execute")
            kernel()

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.calls.append("launch")
        for kernel in graph:
            kernel()

    def drop(self, graph: object) -> None:
        self.calls.append("drop")

    def close(self) -> None:
        self.calls.append("close")


class Engine:
    """x [batch, 3] to y = x + 1 and an int32 count [batch, 1]; batches of 1 to 4."""

    def __init__(self, stream: Stream, counts: tuple[int, ...] = (-1, 1)) -> None:
        self.stream = stream
        self.shapes = {"x": (-1, 3), "y": (-1, 3), "count": counts}
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.num_io_tensors = 3
        self.fails = False

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="INT32" if name == "count" else "FLOAT")

    def get_tensor_mode(self, name: str) -> str:
        return INPUT if name == "x" else OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        return [(1, 3), (1, 3), (4, 3)]

    def create_execution_context(self) -> Engine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return 1 <= self.batch <= 4 and shape[1:] == (3,)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first, second = self.shapes[name]
        return (self.batch if first < 0 and self.batch else first, second)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, handle: int) -> bool:
        assert handle == 7
        memory = {name: self.stream.live[at][1] for name, at in self.addresses.items()}

        def kernel() -> None:
            memory["y"][...] = memory["x"] + 1
            memory["count"][...] = self.batch

        self.stream.enqueue(kernel)
        return not self.fails


def fake_tensorrt(engine: Engine | None, messages: tuple[str, ...] = ()) -> Any:
    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            for message in messages:
                self.logger.log(Logger.ERROR, message)
            return engine

    modes = SimpleNamespace(INPUT=INPUT, OUTPUT=OUTPUT)
    return SimpleNamespace(ILogger=Logger, Runtime=Runtime, TensorIOMode=modes, __version__="11")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "m.engine").write_bytes(b"engine")
    return tmp_path / "m.engine"


def batch(size: int) -> dict[str, Array]:
    return {"x": np.arange(3 * size, dtype=np.float32).reshape(size, 3)}


def test_outputs_of_every_type_come_back_in_arrays_of_their_own(path: Path) -> None:
    stream = Stream()
    execution = EngineExecution(path, fake_tensorrt(Engine(stream)), stream)
    first = execution.infer(batch(2))
    second = execution.infer({"x": np.zeros((2, 3), np.float32)})
    np.testing.assert_array_equal(first["y"], batch(2)["x"] + 1)
    np.testing.assert_array_equal(second["y"], np.ones((2, 3)))
    assert first["count"].dtype == np.int32
    assert first["count"].tolist() == [[2], [2]]
    assert [(tensor.name, tensor.shape) for tensor in execution.tensors if tensor.is_input] == [
        ("x", (-1, 3))
    ]


def test_the_second_run_is_captured_and_another_shape_starts_again(path: Path) -> None:
    stream = Stream()
    execution = EngineExecution(path, fake_tensorrt(Engine(stream)), stream)
    for _ in range(3):
        execution.infer(batch(2))
    once = ["upload", "execute", "download", "download", "wait"]
    graph = ["upload", "launch", "download", "download", "wait"]
    buffers = ["buffer [2, 3] float32", "buffer [2, 3] float32", "buffer [2, 1] int32"]
    assert stream.calls == [*buffers, *once, "capture", *graph, *graph]
    stream.calls.clear()
    execution.infer(batch(1))
    assert stream.calls[:5] == ["drop", "free", "free", "free", "buffer [1, 3] float32"]
    assert "execute" in stream.calls


def test_what_cannot_be_captured_is_executed(path: Path) -> None:
    stream = Stream(captures=False)
    execution = EngineExecution(path, fake_tensorrt(Engine(stream)), stream)
    for _ in range(3):
        execution.infer(batch(2))
    assert stream.calls.count("execute") == 3
    assert stream.calls.count("capture") == 1


def test_closing_waits_frees_everything_and_closes_the_stream_last(path: Path) -> None:
    stream = Stream()
    execution = EngineExecution(path, fake_tensorrt(Engine(stream)), stream)
    execution.infer(batch(2))
    execution.infer(batch(2))
    stream.calls.clear()
    execution.close()
    assert stream.calls == ["wait", "drop", "free", "free", "free", "close"]
    assert stream.live == {}


def test_the_gpus_clock_times_with_and_without_copies(path: Path) -> None:
    stream = Stream()
    execution = EngineExecution(path, fake_tensorrt(Engine(stream)), stream)
    time = execution.time(batch(1))
    assert (time.end_to_end, time.device_only) == (3.0, 1.0)
    assert measure_throughput(execution, batch(4), 4, min_seconds=0.001) > 0


@pytest.mark.parametrize(
    ("feed", "reason"),
    [
        ({}, "no value for input x"),
        (batch(5), r"input x \[5, 3\] is not between \[1, 3\] and \[4, 3\]"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused(path: Path, feed, reason) -> None:
    stream = Stream()
    execution = EngineExecution(path, fake_tensorrt(Engine(stream)), stream)
    with pytest.raises(EngineError, match=reason) as caught:
        execution.infer(feed)
    assert caught.value.exit_code == 2
    assert execution.infer(batch(1))["count"].tolist() == [[1]]


def test_an_output_whose_size_depends_on_the_data_is_refused(path: Path) -> None:
    stream = Stream()
    engine = Engine(stream, counts=(1, -1))
    with pytest.raises(EngineError, match="size of output count depends on the data"):
        EngineExecution(path, fake_tensorrt(engine), stream).infer(batch(1))


def test_a_failed_execution_says_what_tensorrt_says(path: Path) -> None:
    stream = Stream()
    engine = Engine(stream)
    engine.fails = True
    with pytest.raises(EngineError, match="execution failed"):
        EngineExecution(path, fake_tensorrt(engine), stream).infer(batch(1))


def test_an_engine_of_another_gpu_is_one_line(path: Path) -> None:
    message = (
        "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (The engine plan file is "
        "generated on an incompatible device, expecting compute 8.7 got compute 8.9, please rebuild.)"
    )
    with pytest.raises(EngineError) as caught:
        EngineExecution(path, fake_tensorrt(None, (message,)), Stream())
    assert "expecting compute 8.7 got compute 8.9" in str(caught.value)
    assert str(caught.value).endswith("build it again here")
    assert "\n" not in str(caught.value)


def test_the_runner_reports_both_latencies_and_closes_what_it_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream()
    monkeypatch.setattr(
        "reptrt.engines.runtime.runners.find_gpu", lambda: SimpleNamespace(name="NVIDIA L4")
    )
    monkeypatch.setattr("reptrt.engines.runtime.runners.open_stream", lambda: stream)
    trt = fake_tensorrt(Engine(stream))
    monkeypatch.setattr("reptrt.engines.runtime.runners.require_module", lambda name, install: trt)
    with TensorRTRunner(path) as runner:
        assert runner.input_metadata["x"].shape == (-1, 3)
        latency = measure_latency(runner, batch(1), warmup=2, max_iterations=5)
    assert (latency.p50, latency.p99, latency.iterations) == (3.0, 3.0, 5)
    assert latency.device_only is not None
    assert latency.device_only.p50 == 1.0
    assert (latency.backend, latency.device) == ("tensorrt 11", "NVIDIA L4")
    assert stream.calls[-1] == "close"


def test_a_runner_that_cannot_load_closes_its_stream(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream()
    monkeypatch.setattr(
        "reptrt.engines.runtime.runners.find_gpu", lambda: SimpleNamespace(name="NVIDIA L4")
    )
    monkeypatch.setattr("reptrt.engines.runtime.runners.open_stream", lambda: stream)
    monkeypatch.setattr(
        "reptrt.engines.runtime.runners.require_module", lambda name, _: fake_tensorrt(None)
    )
    with pytest.raises(EngineError, match="no reason given"), TensorRTRunner(path):
        pass
    assert stream.calls == ["close"]
