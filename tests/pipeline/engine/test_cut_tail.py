"""Files whose tail TensorRT-RTX has no kernel for: two files that together are the whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import reptrt
from reptrt.engines.build.builder import BuildError
from reptrt.pipeline.open_run import Caller, open_run
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.workspace.folder import WorkspaceError
from reptrt.pipeline.workspace.stage import Stage
from tests.models.onnx_import.test_islands import CONV, TALL
from tests.onnx_files import from_text

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")

BOXES = """<ir_version: 8, opset_import: ["": 17]>
    net (float[1,3,8,8] x) => (int64[found, 3] y, int64 count)
    <{conv}, int64[3] r = {{0, -1, 4}}, int64[3] q = {{0, 4, -1}}, int64[1] m = {{3}}, float[1] i = {{0.5}},
     float[1] h = {{0.2}}, int64 z = {{0}}> {{
    c = Conv<pads = [1, 1, 1, 1]>(x, w) f = Reshape(c, r) b = Sigmoid(f) t = Reshape(c, q)
    s = Sigmoid(t) y = NonMaxSuppression(b, s, m, i, h) d = Shape(y) count = Gather(d, z) }}"""


def test_the_engine_ends_in_front_of_nms_and_the_rest_is_a_file(tmp_path: Path) -> None:
    result = _quantize(from_text(BOXES.format(conv=CONV), tmp_path / "m.onnx"), tmp_path)
    files = result.workspace
    assert result.report.fusion is not None
    (tail,) = result.report.fusion.operator_islands
    assert "tensorrt_rtx has no NonMaxSuppression: the engine ends in front of it" in tail.reason
    feed = {"images": np.random.default_rng(0).random((1, 3, 8, 8), np.float32)}
    whole, cut = (_run(name, feed) for name in (files.trt_onnx, files.cut_onnx))
    assert set(cut) == {"b", "s"}
    assert _operators(files.cut_onnx).isdisjoint({"NonMaxSuppression", "Shape"})
    behind = _run(files.tail_onnx, cut)
    assert list(behind) == list(whole) == ["y", "count"]
    assert whole["count"] == len(whole["y"]) > 0
    for name, values in behind.items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_cut_file_of_another_model_is_not_what_the_engine_is_built_from(tmp_path: Path) -> None:
    path = from_text(BOXES.format(conv=CONV), tmp_path / "m.onnx")
    recipe = Recipe(model=str(path), target="tensorrt-rtx")
    with open_run(recipe, tmp_path / "b", Caller("t")) as run:
        files = run.workspace
        files.trt_onnx.write_bytes(b"new weights")
        files.cut_onnx.write_bytes(b"old weights")
        assert run.engine_onnx == files.trt_onnx
        made = [files.cut_onnx, files.tail_onnx]
        files.tail_onnx.touch()
        for source, expected in (
            (b"old weights", files.trt_onnx),
            (b"new weights", files.cut_onnx),
        ):
            digest = hashlib.sha256(source).hexdigest()
            Stage("tail", "t", 0, {"trt_onnx": digest}, made).run(lambda: None)
            assert run.engine_onnx == expected
        files.cut_onnx.write_bytes(b"planted")
        with pytest.raises(
            WorkspaceError, match=r"model\.cut\.onnx: is not what was written there"
        ):
            _ = run.engine_onnx


REGIONS = """<ir_version: 8, opset_import: ["": 16]> net (float[1,3,8,8] x) => (float y)
    <{conv}, float[2, 4] r = {{0, 0, 7, 7, 1, 2, 5, 6}}, int64[2] i = {{0, 0}}> {{
    c = Conv<pads = [1, 1, 1, 1]>(x, w) {body} }}"""
POOLED = "RoiAlign<output_height = 4, output_width = 4>(c, r, i)"


def test_what_no_kernel_computes_is_cut_off_behind_the_last_layer(tmp_path: Path) -> None:
    path = from_text(REGIONS.format(conv=CONV, body=f"y = {POOLED}"), tmp_path / "m.onnx")
    files = _quantize(path, tmp_path).workspace
    assert "RoiAlign" in _operators(files.tail_onnx)
    assert "RoiAlign" not in _operators(files.cut_onnx)


def test_what_no_kernel_computes_is_said_before_calibration(tmp_path: Path) -> None:
    text = REGIONS.format(conv=f"{CONV}, {TALL}", body=f"p = {POOLED} y = Conv(p, v)")
    path = from_text(text, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"m\.onnx: TensorRT refuses RoiAlign .* no plugins"):
        _quantize(path, tmp_path)
    assert list(tmp_path.rglob("model.fp32.onnx"))
    assert not list(tmp_path.rglob("calibration.safetensors"))


def _quantize(path: Path, folder: Path) -> reptrt.Result:
    images = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)
    return reptrt.quantize(
        path, images, workspace=folder / "b", quantize="all", calibrator="minmax", progress=False,
        target="tensorrt-rtx",
    )  # fmt: skip


def _operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def _run(path: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
