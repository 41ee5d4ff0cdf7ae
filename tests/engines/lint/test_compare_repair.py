"""`lint --fix` writes no file that computes something else than the one it repaired."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from reptrt.engines.lint import repair
from reptrt.engines.lint.compare_repair import find_loss
from reptrt.engines.lint.read_model import LintError

TEXT = """<ir_version: 8, opset_import: ["": 17]> net (float[n,4] x) => (float[n,4] y, bool[n,4] m)
<float s = {SCALE}, int8 z = {0}> {
    q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) m = Greater(y, s) }"""


def _file(path: Path, scale: float) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT.replace("SCALE", str(scale))), path)
    return path


def test_a_file_with_its_own_scales_is_the_same(tmp_path: Path) -> None:
    source = _file(tmp_path / "a.onnx", 0.02)
    assert find_loss(source, source) is None
    assert find_loss(source, _file(tmp_path / "b.onnx", 0.021)) is None


def test_an_output_that_its_dropped_pair_clipped_is_the_same(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[n,4] x) => (float[n,4] y)
    <float s = {0.02}, float eight = {8.0}, int8 z = {0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = Mul(d, eight)
        o = QuantizeLinear(w, s, z) y = DequantizeLinear(o, s, z) }"""
    source, dropped = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(onnx.parser.parse_model(text), source)
    model = onnx.load(source)
    del model.graph.node[3:]
    model.graph.node[2].output[0] = "y"
    onnx.save(model, dropped)
    assert find_loss(source, dropped) is None


def test_an_output_that_lost_its_digits_is_named_with_its_distance(tmp_path: Path) -> None:
    loss = find_loss(_file(tmp_path / "a.onnx", 0.02), _file(tmp_path / "b.onnx", 1.0))
    assert loss is not None
    assert loss.startswith("output 'y' would be")


def test_what_onnx_runtime_does_not_run_is_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = _file(tmp_path / "a.onnx", 0.02)
    model = onnx.load(source)
    model.graph.node[2].domain = "com.acme"
    model.opset_import.add(domain="com.acme", version=1)
    onnx.save(model, tmp_path / "b.onnx")
    assert find_loss(source, tmp_path / "b.onnx") is None
    assert "not compared" in caplog.text


def test_a_repair_that_loses_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _file(tmp_path / "a.onnx", 0.02)
    monkeypatch.setattr(repair, "clean", lambda source, target: _file(target, 1.0))
    with pytest.raises(LintError, match="not written: output 'y' would be"):
        repair.repair_file(source, tmp_path / "fixed.onnx")
    assert not (tmp_path / "fixed.onnx").exists()
