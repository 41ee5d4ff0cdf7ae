from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.device import cpu_name
from reptrt.engines.runtime import runners
from reptrt.engines.runtime.runners import (
    ModelFileError,
    OnnxRuntimeRunner,
    TensorRTRunner,
)
from reptrt.engines.target import MissingComponentError


def test_onnx_runtime_computes_quantize_and_dequantize_by_hand(qdq_graph, tmp_path):
    graph = qdq_graph()
    path = graph.save(tmp_path / "q.onnx", graph.qdq("images", scale=0.5), [1, 4])
    with OnnxRuntimeRunner(path, optimize=False) as runner:
        feed = {"images": np.array([[0.2, 0.3, -0.3, 1000.0]], np.float32)}
        outputs = runner.infer(feed)
    np.testing.assert_array_equal(outputs["images_dq"], [[0.0, 0.5, -0.5, 63.5]])


def test_input_metadata_gives_shape_and_dtype(mixed_onnx):
    with OnnxRuntimeRunner(mixed_onnx(batch="N"), num_threads=1) as runner:
        spec = runner.input_metadata["images"]
    assert spec.shape == (-1, 3, 16, 16)
    assert spec.dtype == np.float32


def test_an_idle_session_leaves_the_processors_to_the_one_that_is_timed(mixed_onnx):
    with OnnxRuntimeRunner(mixed_onnx(), num_threads=2) as runner:
        options = runner._session.get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_the_cpu_runner_says_where_it_runs(mixed_onnx):
    runner = OnnxRuntimeRunner(mixed_onnx(), name="int8")
    assert runner.name == "int8"
    assert runner.backend.startswith("onnxruntime ")
    assert runner.device == cpu_name()


def test_a_file_that_is_not_onnx_is_one_line(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not onnx")
    with pytest.raises(ModelFileError) as caught, OnnxRuntimeRunner(path):
        pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_without_a_gpu_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "find_gpu", lambda: None)
    with pytest.raises(MissingComponentError, match="needs an NVIDIA GPU") as caught:
        TensorRTRunner(tmp_path / "m.engine", "tensorrt_rtx").__enter__()
    assert caught.value.exit_code == 4


def test_onnx_runtime_keeps_nothing_in_the_users_home(tmp_path: Path) -> None:
    command = "import reptrt.engines, onnxruntime; onnxruntime.InferenceSession"
    environment = {
        key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"
    }
    subprocess.run(
        [sys.executable, "-c", command], check=True, env={**environment, "HOME": str(tmp_path)}
    )
    assert list(tmp_path.iterdir()) == []
