"""Run one engine: its context, its buffers, one stream, and the GPU's own clock.

An inference is: copy the inputs to page-locked memory, upload, execute, download. The execution is
captured as a CUDA graph the second time it has the same shapes, where that can be done; copies stay
outside of it, so that they can be timed apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from reptrt.engines.build.callbacks import BuildLog, create_logger
from reptrt.engines.build.tensorrt_errors import first_reason
from reptrt.engines.runtime.cuda_stream import Buffer, CudaStream
from reptrt.engines.tensor_spec import EngineTensor

Array = npt.NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]

_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32",
    "INT64": "int64", "BOOL": "bool",
}  # fmt: skip


class EngineError(RuntimeError):
    """The engine cannot be loaded here, or not be run on what it was given."""

    exit_code = 2


@dataclass(frozen=True)
class InferenceTime:
    """Milliseconds on the GPU's clock: with both copies, and of the execution alone."""

    end_to_end: float
    device_only: float


class EngineExecution:
    """A loaded engine on `stream`, which it closes with itself.

    `trusted` lets a version-compatible engine run the code it carries (the runtime of the TensorRT
    that built it): only for files that were built here.

    Raises:
        EngineError: the file is no engine, or one of another GPU or TensorRT.
    """

    def __init__(
        self, path: Path, trt: ModuleType, stream: CudaStream, trusted: bool = False
    ) -> None:
        self._stream = stream
        self._buffers: dict[str, Buffer] = {}
        self._shapes: Shapes | None = None
        self._graph: Any | None = None
        self._runs = 0  # with these shapes
        log = BuildLog()
        self._logger = create_logger(trt, log)  # must outlive the runtime
        runtime = trt.Runtime(self._logger)
        runtime.engine_host_code_allowed = trusted
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        context = None if engine is None else engine.create_execution_context()
        if context is None:
            raise EngineError(f"{path}: TensorRT does not load it: {first_reason(log.errors)}")
        self._path, self._log = path, log
        self._runtime, self._engine, self._context = runtime, engine, context
        self.tensors = _read_tensors(trt, path, engine)
        self._events = [stream.event() for _ in range(4)]

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, in arrays of its own."""
        self._load(feed)
        self._enqueue()
        self._stream.synchronize()
        return {
            tensor.name: self._buffers[tensor.name].host.copy()
            for tensor in self.tensors
            if not tensor.is_input
        }

    def time(self, feed: Mapping[str, Array]) -> InferenceTime:
        """Run once and return how long the GPU took; filling page-locked memory is not counted."""
        self._load(feed)
        self._enqueue()
        self._stream.synchronize()
        start, uploaded, executed, end = self._events
        return InferenceTime(
            self._stream.milliseconds(start, end), self._stream.milliseconds(uploaded, executed)
        )

    def time_back_to_back(self, feed: Mapping[str, Array], count: int) -> float:
        """Return the milliseconds of `count` executions without copies or waiting in between."""
        self._load(feed)
        self._enqueue()
        start, end = self._events[0], self._events[3]
        self._stream.record(start)
        for _ in range(count):
            self._execute()
        self._stream.record(end)
        self._stream.synchronize()
        return self._stream.milliseconds(start, end)

    def close(self) -> None:
        """Free everything, in the order that CUDA wants."""
        self._stream.synchronize()
        self._forget_shapes()
        del self._context, self._engine, self._runtime
        self._stream.close()

    def _load(self, feed: Mapping[str, Array]) -> None:
        """Put `feed` into page-locked memory, after making buffers for its shapes."""
        inputs = [tensor for tensor in self.tensors if tensor.is_input]
        if missing := [tensor.name for tensor in inputs if tensor.name not in feed]:
            raise EngineError(f"{self._path}: no value for input {', '.join(missing)}")
        shapes = tuple(tuple(feed[tensor.name].shape) for tensor in inputs)
        if shapes != self._shapes:
            self._forget_shapes()
            for tensor, shape in zip(inputs, shapes, strict=True):
                self._set_shape(tensor, shape)
            for tensor in self.tensors:
                self._make_buffer(tensor)
            self._shapes = shapes
        for tensor in inputs:
            np.copyto(self._buffers[tensor.name].host, feed[tensor.name], casting="same_kind")

    def _set_shape(self, tensor: EngineTensor, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(tensor.name, shape):
            low, _, high = self._engine.get_tensor_profile_shape(tensor.name, 0)
            raise EngineError(
                f"{self._path}: input {tensor.name} {list(shape)} is not between {list(low)} and "
                f"{list(high)}, which it was built for"
            )

    def _make_buffer(self, tensor: EngineTensor) -> None:
        shape = tuple(self._context.get_tensor_shape(tensor.name))
        if min(shape, default=0) < 0:
            raise EngineError(
                f"{self._path}: the size of output {tensor.name} depends on the data: export the "
                "model with outputs of fixed size"
            )
        buffer = self._stream.buffer(shape, tensor.dtype)
        self._buffers[tensor.name] = buffer
        self._context.set_tensor_address(tensor.name, buffer.address)

    def _forget_shapes(self) -> None:
        if self._graph is not None:
            self._stream.drop(self._graph)
        for buffer in self._buffers.values():
            self._stream.free(buffer)
        self._buffers.clear()
        self._shapes, self._graph, self._runs = None, None, 0

    def _enqueue(self) -> None:
        """Upload, execute, download; an event before, between and after them."""
        stream = self._stream
        start, uploaded, executed, end = self._events
        if self._runs == 1:
            self._graph = self._capture()
        self._runs += 1
        stream.record(start)
        for tensor in self.tensors:
            if tensor.is_input:
                stream.upload(self._buffers[tensor.name])
        stream.record(uploaded)
        self._execute()
        stream.record(executed)
        for tensor in self.tensors:
            if not tensor.is_input:
                stream.download(self._buffers[tensor.name])
        stream.record(end)

    def _capture(self) -> Any | None:
        try:
            return self._stream.capture(self._execute)
        except EngineError:  # TensorRT cannot do it while a stream is captured
            return None

    def _execute(self) -> None:
        if self._graph is not None:
            self._stream.launch(self._graph)
        elif not self._context.execute_async_v3(self._stream.handle):
            raise EngineError(f"{self._path}: execution failed: {first_reason(self._log.errors)}")


def _read_tensors(trt: ModuleType, path: Path, engine: Any) -> tuple[EngineTensor, ...]:
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        data_type = engine.get_tensor_dtype(name)
        dtype = _DTYPES.get(data_type.name)
        if dtype is None:
            raise EngineError(
                f"{path}: {name} is {data_type.name}, which NumPy has not: export it as FP32 or FP16"
            )
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(engine.get_tensor_shape(name))
        tensors.append(EngineTensor(name, shape, np.dtype(dtype), is_input))
    return tuple(tensors)
