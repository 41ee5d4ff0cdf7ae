from __future__ import annotations

import numpy as np

from pipeline.surgery.quantize_bias import QuantizeBias

CONV = """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s = {0.0625}, int8 z = {0}, float[2] v, int8[2] zs, int8[2,2,1,1] w, float[2] b>
{ p = QuantizeLinear(x, s, z)  a = DequantizeLinear(p, s, z)
  k = DequantizeLinear<axis=0>(w, v, zs)  y = Conv(a, k, b) }"""
WEIGHTS = {
    "v": np.float32([0.125, 0.25]),
    "zs": np.int8([0, 0]),
    "w": np.int8([[[[3]], [[-7]]], [[[127]], [[1]]]]),
}


def bias_codes(done):
    node = next(n for n in done.graph.nodes if n.name == "b_dequantize")
    return node.inputs[0].values, node.inputs[1].values


def test_a_bias_on_the_accumulators_grid_comes_through_unchanged(operate):
    steps = np.float32([0.0625 * 0.125, 0.0625 * 0.25])
    done = operate(QuantizeBias(), CONV, **WEIGHTS, b=steps * [1000, -3])
    codes, scale = bias_codes(done)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, [1000, -3])
    np.testing.assert_array_equal(scale, steps)
    np.testing.assert_array_equal(*done.outputs())


def test_another_bias_moves_by_half_a_step_at_most(operate):
    done = operate(QuantizeBias(), CONV, **WEIGHTS, b=np.float32([0.7, -0.011]))
    before, after = done.outputs()
    assert 0 < np.abs(before - after).max() <= 0.0625 * 0.25 / 2 + 1e-6


def test_a_bias_beyond_32_bits_and_one_of_a_float_layer_stay(operate):
    assert operate(QuantizeBias(), CONV, **WEIGHTS, b=np.float32([1e9, 0])).sites == 0
    half = CONV.replace("Conv(a, k, b)", "Conv(x, k, b)")
    assert operate(QuantizeBias(), half, **WEIGHTS, b=np.float32([1, 0])).sites == 0


def test_the_bias_of_a_gemm_is_quantized(operate):
    done = operate(
        QuantizeBias(),
        """g (float[3,2] x) => (float[3,2] y)
        <float s = {0.0625}, int8 z = {0}, float[2] v, int8[2] zs, int8[2,2] w, float[2] b>
        { p = QuantizeLinear(x, s, z)  a = DequantizeLinear(p, s, z)
          k = DequantizeLinear<axis=0>(w, v, zs)  y = Gemm<transB=1>(a, k, b) }""",
        v=WEIGHTS["v"],
        zs=WEIGHTS["zs"],
        w=np.int8([[3, -7], [127, 1]]),
        b=np.float32([0.0625 * 0.125 * 8, 0]),
    )
    np.testing.assert_array_equal(bias_codes(done)[0], [8, 0])
    np.testing.assert_array_equal(*done.outputs())
