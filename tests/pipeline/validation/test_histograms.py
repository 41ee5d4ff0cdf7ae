from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reptrt.pipeline.validation.histograms import BINS, layer_histograms, read_float_weights
from tests.onnx_files import from_text

HEAD = """<ir_version: 9, opset_import: ["": 19]> net (float[N,2] x) => (float[N,2] y)
    <float s = {0.5}, int8 z = {0}, float t = {0.25}, float low = {-3.5}, float high = {3.5},
     int8[2,2] codes = {1, -127, 127, 0}>"""
FLOAT = """<ir_version: 9, opset_import: ["": 19]> net (float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {WEIGHTS}> { [fc] y = MatMul(x, w) }"""
TAIL = """
    w = DequantizeLinear(codes, t, z)
    [fc] y = MatMul(d, w) }"""
X = np.array([[0.1, 1.0], [-100.0, 3.0]], np.float32)


def of(body: str, path: Path):  # type: ignore[no-untyped-def]
    found = layer_histograms(from_text(HEAD + body + TAIL, path), {"x": X})
    return found["fc"]


def test_what_a_quantizer_reads_is_counted_beside_its_grid(tmp_path: Path) -> None:
    layer = of("{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)", tmp_path / "m.onnx")
    assert (layer.step, layer.grid) == (0.5, (-64.0, 63.5))
    assert layer.clipped == 25.0  # -100 of four values
    activation = layer.activation
    assert (activation.low, activation.high) == (-100.0, 63.5)
    assert (len(activation.counts), sum(activation.counts)) == (BINS, 4)
    assert activation.counts[0] == 1
    assert (sum(layer.weights.counts), layer.weights.counts[0], layer.weights.counts[-1]) == (
        4,
        1,
        1,
    )


def test_the_clip_of_fewer_bits_is_the_grid(tmp_path: Path) -> None:
    layer = of(
        "{ c = Clip(x, low, high) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)",
        tmp_path / "m.onnx",
    )
    assert layer.grid == (-3.5, 3.5)
    assert layer.clipped == 25.0
    assert layer.activation.low == -100.0


def test_codes_are_followed_through_what_carries_them(tmp_path: Path) -> None:
    body = "{ q = QuantizeLinear(x, s, z) e = DequantizeLinear(q, s, z) d = Identity(e)"
    assert of(body, tmp_path / "m.onnx").step == 0.5


@pytest.mark.parametrize(
    "body",
    ["{ d = Relu(x)", "{ q = QuantizeLinear(x, s, z) e = DequantizeLinear(q, s, z) d = Relu(e)"],
)
def test_a_float_layer_has_none(tmp_path: Path, body: str) -> None:
    assert layer_histograms(from_text(HEAD + body + TAIL, tmp_path / "m.onnx"), {"x": X}) == {}


def float_weights(weights: str, folder: Path):  # type: ignore[no-untyped-def]
    """Of codes 1, -127, 127, 0 in steps of 0.25."""
    body = "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
    qdq = from_text(HEAD + body + TAIL, folder / "qdq.onnx")
    fp32 = from_text(FLOAT.replace("WEIGHTS", weights), folder / "fp32.onnx")
    return layer_histograms(qdq, {"x": X}, read_float_weights(fp32))["fc"].float_weights


def test_weights_in_float_are_counted_in_steps_beside_their_grid(tmp_path: Path) -> None:
    found = float_weights("0.25, -31.75, 37.5, 0.1", tmp_path)
    assert (found.end, found.clipped) == (127.0, 25.0)  # 150 of four values
    assert (found.values.low, found.values.high) == (-127.0, 150.0)
    assert sum(found.values.counts) == 4
    assert (found.values.counts[0], found.values.counts[-1]) == (1, 1)


def test_weights_of_which_a_column_was_multiplied_before_are_not_shown(tmp_path: Path) -> None:
    assert float_weights("0.25, -7.9, 31.75, 0.1", tmp_path) is None
