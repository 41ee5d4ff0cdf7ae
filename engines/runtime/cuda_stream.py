"""One CUDA stream with its memory, events and graphs, through PyCUDA or else cuda-python.

Both work in the device's primary context, which is TensorRT's too. PyCUDA comes first because
Jetsons have it; it captures no graphs.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reptrt.engines.target import MissingComponentError, require_module

Array = npt.NDArray[Any]

_INSTALL = "pip install 'cuda-bindings>=12.6', or pycuda where the CUDA toolkit is"
_NO_GPU = "CUDA finds no usable NVIDIA GPU or driver here"
_FULL = "GPU memory is full: free some, or take a smaller batch"
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class CudaError(RuntimeError):
    """CUDA refused a call."""

    exit_code = 2


@dataclass(frozen=True)
class Buffer:
    """A page-locked host array and as many bytes on the device.

    Attributes:
        host: what `upload` reads and `download` fills.
        pinned: what the library returned for the page-locked memory.
        device: what the library returned for the device memory.
        address: where that is, for TensorRT.
    """

    host: Array
    pinned: Any
    device: Any
    address: int


class CudaStream(Protocol):
    """A stream; what goes on it is asynchronous, and `synchronize` waits for all of it."""

    name: str
    handle: int

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        """Return memory that `free` frees."""

    def free(self, buffer: Buffer) -> None:
        """Free both sides; `buffer.host` must not be read afterwards."""

    def upload(self, buffer: Buffer) -> None:
        """Copy host to device."""

    def download(self, buffer: Buffer) -> None:
        """Copy device to host."""

    def synchronize(self) -> None:
        """Wait for everything on the stream."""

    def event(self) -> Any:
        """Return an event, freed by `close`."""

    def record(self, event: Any) -> None:
        """Note in `event` when the stream gets here."""

    def milliseconds(self, start: Any, end: Any) -> float:
        """Return the GPU's time between two events that have been recorded and waited for."""

    def capture(self, work: Callable[[], None]) -> Any | None:
        """Return what `work` puts on the stream as a graph; None where that cannot be captured."""

    def launch(self, graph: Any) -> None:
        """Put a graph on the stream."""

    def drop(self, graph: Any) -> None:
        """Free a graph."""

    def close(self) -> None:
        """Free the stream and its events."""


def open_stream() -> CudaStream:
    """Return a stream of PyCUDA where that imports, else of cuda-python.

    Raises:
        MissingComponentError: neither is installed, or there is no usable GPU.
    """
    try:
        require_module("pycuda.driver", "")
    except MissingComponentError:
        return _CudaPythonStream(require_module("cuda.bindings.runtime", _INSTALL))
    return _PyCudaStream(require_module("pycuda.driver", _INSTALL))


class _CudaPythonStream:
    """Every function of cuda-python returns an error and then its values."""

    name = "cuda-python"

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._events: list[Any] = []
        try:
            self._stream = self._call(cudart.cudaStreamCreate())
        except RuntimeError as error:  # of cuda-python too, where it finds no driver
            raise MissingComponentError(f"{_NO_GPU}: {error}") from error
        self.handle = int(self._stream)

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        cudart, count = self._cudart, math.prod(shape)
        num_bytes = max(1, count * dtype.itemsize)
        device = self._call(cudart.cudaMalloc(num_bytes))
        try:
            pinned = self._call(cudart.cudaHostAlloc(num_bytes, cudart.cudaHostAllocDefault))
        except CudaError:
            self._call(cudart.cudaFree(device))
            raise
        memory: Any = (ctypes.c_byte * num_bytes).from_address(int(pinned))
        host = np.frombuffer(memory, dtype, count).reshape(shape)
        return Buffer(host, pinned, device, int(device))

    def free(self, buffer: Buffer) -> None:
        self._call(self._cudart.cudaFree(buffer.device))
        self._call(self._cudart.cudaFreeHost(buffer.pinned))

    def upload(self, buffer: Buffer) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.device, buffer.pinned, buffer.host.nbytes, kind)

    def download(self, buffer: Buffer) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(buffer.pinned, buffer.device, buffer.host.nbytes, kind)

    def synchronize(self) -> None:
        self._call(self._cudart.cudaStreamSynchronize(self._stream))

    def event(self) -> Any:
        event = self._call(self._cudart.cudaEventCreate())
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        self._call(self._cudart.cudaEventRecord(event, self._stream))

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(self._call(self._cudart.cudaEventElapsedTime(start, end)))

    def capture(self, work: Callable[[], None]) -> Any | None:
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(cudart.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        finally:  # ends a capture that `work` broke, too
            error, captured = cudart.cudaStreamEndCapture(self._stream)
        if int(error) != 0:
            cudart.cudaGetLastError()  # which forgets it
            return None
        graph = self._call(cudart.cudaGraphInstantiate(captured, 0))
        self._call(cudart.cudaGraphDestroy(captured))
        return graph

    def launch(self, graph: Any) -> None:
        self._call(self._cudart.cudaGraphLaunch(graph, self._stream))

    def drop(self, graph: Any) -> None:
        self._call(self._cudart.cudaGraphExecDestroy(graph))

    def close(self) -> None:
        for event in self._events:
            self._call(self._cudart.cudaEventDestroy(event))
        self._events.clear()
        self._call(self._cudart.cudaStreamDestroy(self._stream))

    def _copy(self, target: Any, source: Any, num_bytes: int, kind: Any) -> None:
        self._call(self._cudart.cudaMemcpyAsync(target, source, num_bytes, kind, self._stream))

    def _call(self, answer: tuple[Any, ...]) -> Any:
        error, *values = answer
        if int(error) == _OUT_OF_MEMORY:
            raise CudaError(_FULL)
        if int(error) != 0:
            raise CudaError(f"CUDA: {getattr(error, 'name', error)}")
        return values[0] if values else None


class _PyCudaStream:
    """PyCUDA frees streams and events with their last reference, and raises its own errors."""

    name = "pycuda"

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        try:
            cuda.init()
            self._context = cuda.Device(0).retain_primary_context()
        except cuda.Error as error:
            raise MissingComponentError(f"{_NO_GPU}: {error}") from error
        self._context.push()
        self._stream = self._run(cuda.Stream)
        self.handle = int(self._stream.handle)

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        host = self._run(lambda: self._cuda.pagelocked_empty(shape, dtype))
        device = self._run(lambda: self._cuda.mem_alloc(max(1, host.nbytes)))
        return Buffer(host, host.base, device, int(device))

    def free(self, buffer: Buffer) -> None:
        buffer.device.free()
        buffer.pinned.free()

    def upload(self, buffer: Buffer) -> None:
        self._run(lambda: self._cuda.memcpy_htod_async(buffer.device, buffer.host, self._stream))

    def download(self, buffer: Buffer) -> None:
        self._run(lambda: self._cuda.memcpy_dtoh_async(buffer.host, buffer.device, self._stream))

    def synchronize(self) -> None:
        self._run(self._stream.synchronize)

    def event(self) -> Any:
        return self._run(self._cuda.Event)

    def record(self, event: Any) -> None:
        self._run(lambda: event.record(self._stream))

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(self._run(lambda: end.time_since(start)))

    def capture(self, work: Callable[[], None]) -> Any | None:
        return None

    def launch(self, graph: Any) -> None:
        raise CudaError("PyCUDA captures no graphs")

    def drop(self, graph: Any) -> None:
        raise CudaError("PyCUDA captures no graphs")

    def close(self) -> None:
        self._context.pop()

    def _run(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._cuda.MemoryError as error:
            raise CudaError(_FULL) from error
        except self._cuda.Error as error:
            raise CudaError(f"CUDA: {error}") from error
