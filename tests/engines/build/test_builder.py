from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from reptrt.engines.artifacts import WriteError
from reptrt.engines.build import builder
from reptrt.engines.build.builder import BuildError, BuildOptions, build_engine, network_flags
from reptrt.engines.build.callbacks import Phases
from reptrt.engines.device import Gpu
from tests.full_disk import fill_disk_for

SM86 = BuildOptions(compute_capabilities=((8, 6),))


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
    with pytest.raises(BuildError, match=r"\(4, 3, 16, 16\) , .* is not 1 <= smallest"):
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
    assert {phase for phase, _, _ in steps} == {"build engine"}
    shares = [done / total for _, done, total in steps]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)


def test_a_phase_counts_as_far_as_the_phases_below_it_are():
    phases = Phases()
    assert phases.start("whole", None, 4) == 0
    assert phases.step("whole", 1) == 0.25
    assert phases.start("inner", "whole", 10) == 0.25
    assert phases.step("inner", 5) == 0.375
    assert phases.finish("inner") == 0.375
    assert phases.step("whole", 2) == 0.5
    assert phases.step("unknown", 9) == 0.5
    assert phases.finish("whole") == 1


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


def test_every_dimension_may_be_dynamic_where_its_sizes_are_given(rtx, qdq_graph, tmp_path):
    graph = qdq_graph()
    conv = graph.conv(graph.qdq("images"), "stem", (32, 3, 3, 3))
    path = graph.save(tmp_path / "any.onnx", conv, ["N", 3, "H", "W"])
    sizes = {"images": ((1, 3, 16, 16), (2, 3, 32, 24), (4, 3, 64, 64))}
    options = BuildOptions(((8, 6),), shapes=sizes)
    layers = build_engine(path, tmp_path / "m.engine", rtx, options).layers
    assert "MinShape: [1,3,16,16], OptShape: [2,3,32,24], MaxShape: [4,3,64,64]" in layers
    with pytest.raises(BuildError, match="the batch alone may be left open"):
        build_engine(path, tmp_path / "m.engine", rtx, SM86)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"images": ((1, 3, 16, 16), (1, 4, 16, 16), (1, 3, 16, 16))}, "fixed ones as they are"),
        ({"images": ((1, 3, 16), (1, 3, 16), (1, 3, 16))}, "in every dimension"),
        ({"imgaes": ((1, 3, 16, 16),) * 3}, "no dynamic input is called imgaes"),
    ],
)
def test_sizes_that_do_not_fit_the_input_are_refused(rtx, mixed_onnx, tmp_path, sizes, reason):
    options = BuildOptions(((8, 6),), shapes=sizes)
    with pytest.raises(BuildError, match=reason):
        build_engine(mixed_onnx(batch="N"), tmp_path / "m.engine", rtx, options)


@pytest.mark.parametrize("flag", ["version_compatible", "hardware_compatible"])
def test_rtx_says_that_it_knows_no_compatibility_flags(rtx, mixed_onnx, tmp_path, flag):
    with pytest.raises(BuildError, match="compiled for all GPUs of their target"):
        build_engine(mixed_onnx(), tmp_path / "m.engine", rtx, BuildOptions(**{flag: True}))


def test_a_tensorrt_that_does_not_start_says_why(mixed_onnx, tmp_path):
    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def no_builder(logger):
        logger.log(Logger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    trt = SimpleNamespace(__name__="tensorrt", ILogger=Logger, Builder=no_builder)
    with pytest.raises(BuildError, match=r"does not start: CUDA init.* `reptrt doctor` says"):
        build_engine(mixed_onnx(), tmp_path / "m.engine", trt)


def test_a_full_disk_is_one_line_and_leaves_nothing(rtx, mixed_onnx, tmp_path, monkeypatch):
    path = tmp_path / "m.engine"
    fill_disk_for(monkeypatch, "m.engine")
    with pytest.raises(WriteError) as caught:
        build_engine(mixed_onnx(), path, rtx, SM86)
    assert str(caught.value) == f"{path}: cannot be written: the disk is full"
    assert caught.value.exit_code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["mixed.onnx"]


KILLED = """
import os, signal, sys
from pathlib import Path
import tensorrt_rtx
from reptrt.engines.build.builder import BuildOptions, build_engine

def kill(phase, done, total):
    if done == total:
        os.kill(os.getpid(), signal.SIGKILL)

options = BuildOptions(compute_capabilities=((8, 6),))
build_engine(Path(sys.argv[1]), Path(sys.argv[2]), tensorrt_rtx, options, kill)
"""


@pytest.mark.usefixtures("rtx")
def test_a_killed_build_leaves_the_old_engine(mixed_onnx, tmp_path):
    path = tmp_path / "out" / "m.engine"
    path.parent.mkdir()
    path.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(mixed_onnx()), str(path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["m.engine"]


def test_compatibility_reaches_the_config_of_classic_tensorrt():
    level = SimpleNamespace(AMPERE_PLUS="ampere")
    flag = SimpleNamespace(VERSION_COMPATIBLE="version")
    trt = SimpleNamespace(__name__="tensorrt", BuilderFlag=flag, HardwareCompatibilityLevel=level)
    flags: list[str] = []
    config = SimpleNamespace(set_flag=flags.append, hardware_compatibility_level="none")
    builder._set_compatibility(trt, config, BuildOptions())
    assert (flags, config.hardware_compatibility_level) == ([], "none")
    builder._set_compatibility(trt, config, BuildOptions(version_compatible=True))
    assert (flags, config.hardware_compatibility_level) == (["version"], "none")
    builder._set_compatibility(trt, config, BuildOptions(hardware_compatible=True))
    assert (flags, config.hardware_compatibility_level) == (["version"], "ampere")


def test_timings_are_kept_for_this_gpu_by_classic_tensorrt_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "find_gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    options = BuildOptions(timing_cache=tmp_path)
    classic = SimpleNamespace(__name__="tensorrt", __version__="10.3.0")
    kept = builder._timings_file(classic, options)
    assert kept == tmp_path / "nvidia-l4-sm89-tensorrt-10.3.0.cache"
    assert builder._timings_file(classic, BuildOptions()) is None
    assert builder._timings_file(SimpleNamespace(__name__="tensorrt_rtx"), options) is None
    monkeypatch.setattr(builder, "find_gpu", lambda: None)
    assert builder._timings_file(classic, options) is None
