"""The border to CUDA: which calls are made, in which order, and what becomes of their errors."""

# ruff: noqa: N802, N815  # names of CUDA and PyCUDA
from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reptrt.engines.runtime import cuda_stream
from reptrt.engines.runtime.cuda_stream import CudaError, open_stream
from reptrt.engines.target import MissingComponentError

F32 = np.dtype(np.float32)


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureInvalidated = 901


VALUES = {"cudaStreamCreate": 7, "cudaMalloc": 4096, "cudaEventCreate": 9,
          "cudaEventElapsedTime": 2.5, "cudaStreamEndCapture": 11,
          "cudaGraphInstantiate": 13}  # fmt: skip


class Cudart:
    """cuda.bindings.runtime: answers (error, value...), and keeps what it was asked."""

    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, **errors: Error) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors = errors
        self.host = ctypes.create_string_buffer(4096)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            error = self.errors.get(name, Error.cudaSuccess)
            if name == "cudaHostAlloc":
                return error, ctypes.addressof(self.host)
            return (error, VALUES[name]) if name in VALUES else (error,)

        return call

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


class PyCuda:
    """pycuda.driver."""

    class Error(Exception):
        pass

    class MemoryError(Error):  # noqa: A001  # PyCUDA's own name
        pass

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory_is_full = False

    def init(self) -> None:
        self.calls.append("init")

    def Device(self, number: int) -> Any:
        context = SimpleNamespace(
            push=lambda: self.calls.append("push"), pop=lambda: self.calls.append("pop")
        )
        return SimpleNamespace(retain_primary_context=lambda: context)

    def Stream(self) -> Any:
        return SimpleNamespace(handle=7, synchronize=lambda: self.calls.append("wait"))

    def Event(self) -> Any:
        return SimpleNamespace(
            record=lambda stream: self.calls.append("record"), time_since=lambda start: 2.5
        )

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return np.zeros(shape, dtype)

    def mem_alloc(self, size: int) -> Any:
        if self.memory_is_full:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        self.calls.append(f"mem_alloc {size}")
        return 4096

    def memcpy_htod_async(self, device: Any, host: Any, stream: Any) -> None:
        self.calls.append("up")

    def memcpy_dtoh_async(self, host: Any, device: Any, stream: Any) -> None:
        self.calls.append("down")


def install(monkeypatch: pytest.MonkeyPatch, **modules: object) -> None:
    """Make `require_module` find these, by the first part of their name, and no others."""

    def find(name: str, install: str) -> object:
        if name.partition(".")[0] not in modules:
            raise MissingComponentError(f"no {name}: {install}")
        return modules[name.partition(".")[0]]

    monkeypatch.setattr(cuda_stream, "require_module", find)


def test_pycuda_comes_first_where_it_is_installed(monkeypatch) -> None:
    install(monkeypatch, pycuda=PyCuda(), cuda=Cudart())
    assert open_stream().name == "pycuda"
    install(monkeypatch, cuda=Cudart())
    assert open_stream().name == "cuda-python"
    install(monkeypatch)
    with pytest.raises(
        MissingComponentError, match=r"pip install 'cuda-bindings>=12.6', or pycuda"
    ):
        open_stream()


def test_both_copy_time_and_leave_in_order(monkeypatch) -> None:
    for module in (PyCuda(), Cudart()):
        install(monkeypatch, **{"pycuda" if isinstance(module, PyCuda) else "cuda": module})
        stream = open_stream()
        assert stream.handle == 7
        buffer = stream.buffer((2, 3), F32)
        assert buffer.host.shape == (2, 3)
        assert buffer.address == 4096
        buffer.host[:] = 1.5  # page-locked memory can be written
        start, end = stream.event(), stream.event()
        stream.record(start)
        stream.upload(buffer)
        stream.download(buffer)
        stream.record(end)
        stream.synchronize()
        assert stream.milliseconds(start, end) == 2.5
        stream.close()


def test_cuda_python_frees_all_that_it_made(monkeypatch) -> None:
    cudart = Cudart()
    install(monkeypatch, cuda=cudart)
    stream = open_stream()
    buffer = stream.buffer((2,), F32)
    stream.event()
    stream.upload(buffer)
    stream.download(buffer)
    stream.free(buffer)
    stream.close()
    host = ctypes.addressof(cudart.host)
    assert cudart.calls == [
        ("cudaStreamCreate",),
        ("cudaMalloc", 8),
        ("cudaHostAlloc", 8, 0),
        ("cudaEventCreate",),
        ("cudaMemcpyAsync", 4096, host, 8, "up", 7),
        ("cudaMemcpyAsync", host, 4096, 8, "down", 7),
        ("cudaFree", 4096),
        ("cudaFreeHost", host),
        ("cudaEventDestroy", 9),
        ("cudaStreamDestroy", 7),
    ]


def test_a_graph_is_captured_once_and_launched(monkeypatch) -> None:
    cudart = Cudart()
    install(monkeypatch, cuda=cudart)
    stream = open_stream()
    graph = stream.capture(lambda: cudart.calls.append(("work",)))
    stream.launch(graph)
    stream.drop(graph)
    assert cudart.calls[1:] == [
        ("cudaStreamBeginCapture", 7, 1),
        ("work",),
        ("cudaStreamEndCapture", 7),
        ("cudaGraphInstantiate", 11, 0),
        ("cudaGraphDestroy", 11),
        ("cudaGraphLaunch", 13, 7),
        ("cudaGraphExecDestroy", 13),
    ]


def test_a_broken_capture_is_ended_and_forgotten(monkeypatch) -> None:
    cudart = Cudart(cudaStreamEndCapture=Error.cudaErrorStreamCaptureInvalidated)
    install(monkeypatch, cuda=cudart)
    stream = open_stream()
    assert stream.capture(lambda: None) is None
    assert cudart.names()[-2:] == ["cudaStreamEndCapture", "cudaGetLastError"]
    with pytest.raises(ZeroDivisionError):
        stream.capture(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert cudart.names()[-1] == "cudaStreamEndCapture"


def test_full_gpu_memory_is_one_line(monkeypatch) -> None:
    full = PyCuda()
    full.memory_is_full = True
    for modules in (
        {"cuda": Cudart(cudaMalloc=Error.cudaErrorMemoryAllocation)},
        {"pycuda": full},
    ):
        install(monkeypatch, **modules)
        with pytest.raises(CudaError, match=r"GPU memory is full: .* smaller batch"):
            open_stream().buffer((2,), F32)


def test_device_memory_is_freed_when_no_page_can_be_locked(monkeypatch) -> None:
    cudart = Cudart(cudaHostAlloc=Error.cudaErrorMemoryAllocation)
    install(monkeypatch, cuda=cudart)
    with pytest.raises(CudaError):
        open_stream().buffer((2,), F32)
    assert cudart.calls[-1] == ("cudaFree", 4096)


def test_another_error_has_its_name(monkeypatch) -> None:
    install(monkeypatch, cuda=Cudart(cudaStreamSynchronize=Error.cudaErrorNoDevice))
    with pytest.raises(CudaError, match="cudaErrorNoDevice"):
        open_stream().synchronize()


def test_a_machine_without_a_gpu_says_so(monkeypatch) -> None:
    install(monkeypatch, cuda=Cudart(cudaStreamCreate=Error.cudaErrorNoDevice))
    with pytest.raises(MissingComponentError, match="no usable NVIDIA GPU") as caught:
        open_stream()
    assert caught.value.exit_code == 4
