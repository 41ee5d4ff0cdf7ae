"""TensorRT's runtime on a machine without a GPU: an "engine" is an ONNX file and the time it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from reptrt.engines.device import Gpu
from reptrt.engines.runtime import runners
from reptrt.engines.target import require_module
from reptrt.pipeline.validation import validate
from tests.engines.runtime.test_engine_context import INPUT, OUTPUT, Stream

GPU = Gpu("Pretended GPU", (8, 9))


def write_fake_engine(path: Path, onnx: Path, milliseconds: float) -> None:
    path.write_bytes(f"{milliseconds}\n".encode() + onnx.read_bytes())


def _open(data: bytes) -> tuple[float, onnxruntime.InferenceSession]:
    milliseconds, _, onnx = data.partition(b"\n")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return float(milliseconds), onnxruntime.InferenceSession(onnx, options)


class OnnxEngine:
    """Batches of 1 to `max_batch`; it is its own execution context."""

    def __init__(self, data: bytes, stream: Stream, max_batch: int) -> None:
        self.milliseconds, self.session = _open(data)
        self.stream, self.max_batch = stream, max_batch
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_mode(self, name: str) -> str:
        return INPUT if name in self.inputs else OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1,), (1,), (self.max_batch,)]

    def create_execution_context(self) -> OnnxEngine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if shape[0] > self.max_batch:
            return False
        outputs = self.session.run(None, {name: np.zeros(shape, np.float32)})
        made = {key: value.shape for key, value in zip(self.outputs, outputs, strict=True)}
        self.shapes = {name: shape, **made}
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        declared = {**self.inputs, **self.outputs}[name].shape
        open_sides = tuple(side if isinstance(side, int) else -1 for side in declared)
        return self.shapes.get(name, open_sides)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, handle: int) -> bool:
        memory = {name: self.stream.live[at][1] for name, at in self.addresses.items()}

        def kernel() -> None:
            self.stream.clock += self.milliseconds
            outputs = self.session.run(None, {name: memory[name] for name in self.inputs})
            for name, value in zip(self.outputs, outputs, strict=True):
                memory[name][...] = value

        self.stream.enqueue(kernel)
        return True


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, max_batch: int = 8) -> None:
    """A GPU, and a TensorRT that loads trusted files only, as it does version-compatible ones."""
    streams: list[Stream] = []

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> OnnxEngine | None:
            return (
                OnnxEngine(data, streams[-1], max_batch) if self.engine_host_code_allowed else None
            )

    modes = SimpleNamespace(INPUT=INPUT, OUTPUT=OUTPUT)
    tensorrt = SimpleNamespace(
        ILogger=Logger, Runtime=Runtime, TensorIOMode=modes, __version__="11.1"
    )
    fakes = {"tensorrt": tensorrt, "tensorrt_rtx": tensorrt}

    def open_stream() -> Stream:
        streams.append(Stream())
        return streams[-1]

    monkeypatch.setattr(
        runners, "require_module", lambda name, hint: fakes.get(name) or require_module(name, hint)
    )
    monkeypatch.setattr(runners, "open_stream", open_stream)
    for module in (runners, validate):
        monkeypatch.setattr(module, "find_gpu", lambda: GPU)
