from __future__ import annotations

import ast
import inspect
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines import builder, callbacks
from engines.builder import BuildError, BuildOptions, build_engine, network_flags

SM86 = BuildOptions(compute_capabilities=((8, 6),))
REMOVED_IN_11 = {
    *("EXPLICIT_BATCH", "FP16", "INT8", "BF16", "FP8", "int8_calibrator", "set_flag"),
    *("platform_has_fast_fp16", "platform_has_fast_int8", "dynamic_range", "precision"),
    *("supports_model", "device_memory_size", "set_output_type", "algorithm_selector"),
}


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")


def test_rtx_builds_an_engine_without_a_gpu(rtx, mixed_onnx, tmp_path):
    path = tmp_path / "out" / "model.engine"
    result = build_engine(mixed_onnx(), path, rtx, SM86)
    assert result.backend == "tensorrt_rtx"
    assert result.size_bytes == path.stat().st_size > 10_000
    assert result.layers.startswith("Layers:\nName: ")
    assert [file.name for file in path.parent.iterdir()] == ["model.engine"]


def test_a_second_build_gets_its_own_layer_list(rtx, mixed_onnx, tmp_path):
    first = build_engine(mixed_onnx(), tmp_path / "a.engine", rtx, SM86)
    second = build_engine(mixed_onnx(half=True), tmp_path / "b.engine", rtx, SM86)
    assert "Datatype: Half" not in first.layers
    assert "Datatype: Half" in second.layers


def test_the_layer_list_arrives_while_another_logger_is_registered(rtx, mixed_onnx, tmp_path):
    other = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    result = build_engine(mixed_onnx(), tmp_path / "m.engine", rtx, SM86)
    assert "Name: stem" in result.layers
    assert other is not None


def test_a_dynamic_batch_gets_the_profile_of_the_options(rtx, mixed_onnx, tmp_path):
    options = BuildOptions(compute_capabilities=((8, 6),), batch=(1, 2, 4))
    result = build_engine(mixed_onnx(batch="N"), tmp_path / "m.engine", rtx, options)
    assert "MinShape: [1,3,16,16], OptShape: [2,3,16,16], MaxShape: [4,3,16,16]" in result.layers


def test_a_batch_out_of_order_is_refused(rtx, mixed_onnx, tmp_path):
    with pytest.raises(BuildError, match=r"batch \(4, 2, 1\)"):
        build_engine(
            mixed_onnx(batch="N"), tmp_path / "m.engine", rtx, BuildOptions(batch=(4, 2, 1))
        )


def test_options_reach_the_compiler(rtx, mixed_onnx, tmp_path):
    options = BuildOptions(((8, 0), (12, 0)), workspace_bytes=1 << 28, optimization_level=1)
    assert build_engine(mixed_onnx(), tmp_path / "m.engine", rtx, options).size_bytes > 0


def test_an_unknown_compute_capability_lists_the_legal_ones(rtx, mixed_onnx, tmp_path):
    options = BuildOptions(compute_capabilities=((9, 0),))
    with pytest.raises(BuildError, match=r"does not compile for SM90; legal: .*SM86"):
        build_engine(mixed_onnx(), tmp_path / "m.engine", rtx, options)


def test_a_refused_node_is_one_line_with_its_name_and_reason(rtx, qdq_graph, tmp_path):
    graph = qdq_graph()
    zero = graph.constant("zero", np.int8(3))
    graph.add("QuantizeLinear", ["images", graph.constant("s", np.float32(1)), zero], "q", name="Q")
    graph.add("DequantizeLinear", ["q", "s", "zero"], "out")
    path = graph.save(tmp_path / "bad.onnx", "out", [1, 3, 8, 8])
    with pytest.raises(BuildError) as caught:
        build_engine(path, tmp_path / "m.engine", rtx, SM86)
    message = str(caught.value)
    expected = f"{path}: TensorRT refuses QuantizeLinear 'Q': Non-zero zero point is not supported"
    assert message.startswith(expected)
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_mixed_datatypes_name_the_mismatch(rtx, qdq_graph, tmp_path):
    graph = qdq_graph()
    weight = graph.constant("w", np.ones((4, 3, 1, 1), np.float16))
    path = graph.save(
        tmp_path / "bad.onnx", graph.add("Conv", ["images", weight], "y"), [1, 3, 8, 8]
    )
    with pytest.raises(BuildError, match="`input` type is Float but `kernel` is of type Half"):
        build_engine(path, tmp_path / "m.engine", rtx, SM86)


def test_a_file_that_is_not_onnx_says_so(rtx, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not onnx")
    with pytest.raises(BuildError, match="not a readable ONNX file"):
        build_engine(path, tmp_path / "m.engine", rtx, SM86)


def test_progress_counts_up_to_the_whole(rtx, mixed_onnx, tmp_path):
    steps = []
    build_engine(mixed_onnx(), tmp_path / "m.engine", rtx, SM86, lambda *step: steps.append(step))
    building = [(done, total) for phase, done, total in steps if phase == "Building engine"]
    assert building[0][0] == 0
    assert building[-1][0] == building[-1][1] > 0


def test_ctrl_c_cancels_the_build_and_writes_nothing(rtx, mixed_onnx, tmp_path):
    path = mixed_onnx()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            path,
            tmp_path / "m.engine",
            rtx,
            SM86,
            lambda *step: os.kill(os.getpid(), signal.SIGINT),
        )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mixed.onnx"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_progress_callback_comes_out_unchanged(rtx, mixed_onnx, tmp_path):
    def fail(phase: str, done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_engine(mixed_onnx(), tmp_path / "m.engine", rtx, SM86, fail)


@pytest.mark.parametrize(
    ("name", "version", "flags"),
    [
        ("tensorrt", "10.3.0", 2),
        ("tensorrt", "10.16.1.11", 2),
        ("tensorrt", "11.4.0.106", 0),
        ("tensorrt_rtx", "1.7.1.116", 0),
    ],
)
def test_the_network_is_strongly_typed_in_every_version(name, version, flags):
    trt = SimpleNamespace(
        __name__=name,
        __version__=version,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )
    assert network_flags(trt) == flags


def test_the_builder_names_no_api_that_tensorrt_11_removed():
    tree = ast.parse(inspect.getsource(builder) + inspect.getsource(callbacks))
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert named.isdisjoint(REMOVED_IN_11)


class _Config:
    """The part of TensorRT 10's IBuilderConfig that the builder touches."""

    def __init__(self, accepts: bool) -> None:
        self.accepts = accepts
        self.cache = b""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return self.accepts or not cache


@pytest.mark.parametrize(("accepts", "expected"), [(True, b"timings"), (False, b"")])
def test_a_timing_cache_of_another_device_is_replaced(tmp_path: Path, accepts, expected):
    path = tmp_path / "timing.cache"
    path.write_bytes(b"timings")
    config = _Config(accepts)
    builder._load_timing_cache(config, path)
    assert config.cache == expected
