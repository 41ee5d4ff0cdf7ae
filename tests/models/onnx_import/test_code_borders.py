"""Files that take and return codes, as TensorFlow Lite's do once they are converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.values import open_session
from reptrt.pipeline.quantized_file import imply_float
from tests.models.onnx_import.test_islands import weight
from tests.onnx_files import from_text

NET = """<ir_version: 8, opset_import: ["": 13]> net ({kind}[N,4,6,3] x) => ({kind} y)
    <{weight}, float s = {{0.1}}, {kind} z = {{{zero}}}, float t = {{0.02}}, {kind} r = {{{out}}}> {{
    d = DequantizeLinear(x, s, z) i = Transpose<perm = [0, 3, 1, 2]>(d) c = Conv(i, w) {end} }}"""
END = "f = Flatten(c) y = QuantizeLinear(f, t, r)"


def _write(tmp_path: Path, kind: str, zero: int, out: int, end: str = END) -> Path:
    text = NET.format(kind=kind, weight=weight("w", 2, 3, 3, 3), zero=zero, out=out, end=end)
    return from_text(text, tmp_path / "codes.onnx")


@pytest.mark.parametrize(("kind", "zero", "out"), [("uint8", 120, 9), ("int8", -8, -119)])
def test_pixels_go_in_and_values_come_out(kind: str, zero: int, out: int, tmp_path: Path) -> None:
    path = _write(tmp_path, kind, zero, out)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    codes = pixels if kind == "uint8" else (pixels.astype(np.int16) - 128).astype(np.int8)
    (returned,) = open_session(onnx.load(path)).run(None, {"x": codes})
    file = read_onnx(path)
    (found,) = open_session(file.proto).run(None, {"x": pixels})
    np.testing.assert_allclose(found, (returned.astype(np.float32) - out) * 0.02, atol=1e-6)
    assert file.raw_type == onnx.TensorProto.UINT8
    ops = [node.op_type for node in imply_float(file).proto.graph.node]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops)


def test_codes_that_are_read_as_numbers_stay(tmp_path: Path) -> None:
    end = "f = Flatten(c) k = Cast<to = 1>(x) m = ReduceMax<keepdims = 0>(k) y = Add(f, m)"
    path = _write(tmp_path, "uint8", 120, 9, end)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, path)
    assert next(node.op_type for node in read_onnx(path).proto.graph.node) == "DequantizeLinear"


def test_the_value_of_a_pixel_is_what_the_file_makes_of_its_code(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> net (int8[N,1,2,2] x) => (float y)
        <float s = {0.5}, int8 z = {-28}> { y = DequantizeLinear(x, s, z) }"""
    file = read_onnx(from_text(text, tmp_path / "codes.onnx"))
    pixels = np.array([[0, 100], [101, 255]], np.uint8)[None, None]
    (found,) = open_session(file.proto).run(None, {"x": pixels})
    assert found.ravel().tolist() == [-50.0, 0.0, 0.5, 77.5]
