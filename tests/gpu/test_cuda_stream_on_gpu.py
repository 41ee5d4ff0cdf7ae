"""Memory, copies, events and graphs on this machine's GPU, without TensorRT."""

from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.device import find_gpu
from reptrt.engines.runtime.cuda_stream import CudaError, open_stream

pytestmark = pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU on this machine")


@pytest.fixture
def stream():
    stream = open_stream()
    yield stream
    stream.close()


def test_what_goes_up_comes_down_and_takes_time(stream) -> None:
    buffer = stream.buffer((1000, 1000), np.dtype(np.float32))
    expected = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
    start, end = stream.event(), stream.event()
    buffer.host[...] = expected
    stream.record(start)
    stream.upload(buffer)
    stream.synchronize()
    buffer.host[...] = 0
    stream.download(buffer)
    stream.record(end)
    stream.synchronize()
    np.testing.assert_array_equal(buffer.host, expected)
    assert stream.milliseconds(start, end) > 0
    stream.free(buffer)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "bool", "float16"])
def test_every_type_and_an_empty_shape_can_be_held(stream, dtype: str) -> None:
    for shape in ((3,), (0, 4), ()):
        buffer = stream.buffer(shape, np.dtype(dtype))
        assert (buffer.host.shape, buffer.host.dtype) == (shape, np.dtype(dtype))
        stream.free(buffer)


def test_a_graph_repeats_what_was_captured(stream) -> None:
    buffer = stream.buffer((4,), np.dtype(np.int32))
    buffer.host[...] = 5
    stream.upload(buffer)
    stream.synchronize()
    graph = stream.capture(lambda: stream.download(buffer))
    if graph is None:
        pytest.skip(f"{stream.name} captures no graphs")
    for _ in range(2):
        buffer.host[...] = 0
        stream.launch(graph)
        stream.synchronize()
        assert buffer.host.tolist() == [5] * 4
    stream.drop(graph)
    stream.free(buffer)


def test_more_memory_than_there_is_is_one_line(stream) -> None:
    with pytest.raises(CudaError, match="GPU memory is full"):
        stream.buffer((1 << 44,), np.dtype(np.int8))
