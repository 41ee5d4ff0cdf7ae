"""`reptrt triton`: from a run to a model repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.device import find_gpu
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from tests.command_line import TinyProject, reptrt


def test_the_cpu_target_is_served_by_onnx_runtime(tiny: TinyProject, tmp_path: Path):
    options = [*tiny.options[:-1], "cpu", "--max-batch", 4, "--workspace", tmp_path / "build"]
    repository = tmp_path / "models"
    first = reptrt("triton", *options, "--output", repository, "--name", "cats")
    assert first.code == 0, first.err
    assert first.err.strip().endswith("models/cats/1")
    assert reptrt("triton", *options, "--output", repository, "--name", "cats").code == 0
    config = (repository / "cats" / "config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"' in config
    assert "max_batch_size: 4" in config
    folder = tmp_path / "build" / "tiny_models-build" / "minmax-w8a8" / "cpu"
    images = np.load(tiny.data)[:2]
    outputs = []
    for path in (folder / "model.trt.onnx", repository / "cats" / "2" / "model.onnx"):
        with OnnxRuntimeRunner(path, optimize=False) as runner:
            outputs.append(runner.infer({"images": images})["logits"])
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_an_engine_of_tensorrt_rtx_is_refused_with_the_ways_out(tiny: TinyProject, tmp_path: Path):
    outcome = reptrt(
        "triton", *tiny.options, "--workspace", tmp_path / "build", "--output", tmp_path / "models"
    )
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert "cannot load engines of TensorRT-RTX" in line
    assert "--target tensorrt" in line
    assert "--target cpu" in line
    assert not (tmp_path / "models").exists()


def test_a_classic_engine_is_not_begun_where_it_cannot_be_built(tiny: TinyProject, tmp_path: Path):
    if find_gpu() is not None and importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT and a GPU are here")
    options = [*tiny.options[:-1], "server-t4", "--workspace", tmp_path / "build"]
    outcome = reptrt("triton", *options, "--output", tmp_path / "models")
    assert outcome.code == 4
    assert len(outcome.complaints) == 1
    assert not list(tmp_path.rglob("calibration.safetensors"))
