from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reptrt.pipeline.validation.histograms import BINS, layer_histograms
from tests.onnx_files import from_text

HEAD = """<ir_version: 9, opset_import: ["": 19]> net (float[N,2] x) => (float[N,2] y)
    <float s = {0.5}, int8 z = {0}, float t = {0.25}, float low = {-3.5}, float high = {3.5},
     int8[2,2] codes = {1, -127, 127, 0}>"""
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
