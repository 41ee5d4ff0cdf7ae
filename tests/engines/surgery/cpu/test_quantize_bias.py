from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.cpu.quantize_bias import QuantizeBias

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
    assert done.sites == 1
    codes, scale = bias_codes(done)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, [1000, -3])
    np.testing.assert_array_equal(scale, steps)
    np.testing.assert_array_equal(*done.outputs())


def test_another_bias_moves_by_half_a_step_at_most(operate):
    done = operate(QuantizeBias(), CONV, **WEIGHTS, b=np.float32([0.7, -0.011]))
    before, after = done.outputs()
    assert 0 < np.abs(before - after).max() <= 0.0625 * 0.25 / 2 + 1e-6


def test_one_scale_of_all_weights_makes_one_step(operate):
    scalar = WEIGHTS | {"v": np.float32(0.125), "zs": np.int8(0)}
    text = CONV.replace("float[2] v, int8[2] zs", "float v, int8 zs")
    done = operate(QuantizeBias(), text, **scalar, b=np.float32([0.0625, -0.25]))
    np.testing.assert_array_equal(bias_codes(done)[0], [8, -32])
    np.testing.assert_array_equal(*done.outputs())


@pytest.mark.parametrize("bias", [[1e9, 0], [0, -1e9]])
def test_a_bias_beyond_32_bits_stays(operate, bias):
    assert operate(QuantizeBias(), CONV, **WEIGHTS, b=np.float32(bias)).sites == 0


@pytest.mark.parametrize("layer", ["Conv(x, k, b)", "Conv(r, k, b)", "Conv(a, k)"])
def test_float_layers_and_those_without_a_bias_stay(operate, layer):
    text = CONV.replace("y = Conv(a, k, b)", f"r = Relu(a)  y = {layer}")
    assert operate(QuantizeBias(), text, **WEIGHTS, b=np.float32([1, 0])).sites == 0


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


def test_a_bias_of_a_gemm_that_is_no_vector_stays(operate):
    done = operate(
        QuantizeBias(),
        """g (float[3,2] x) => (float[3,2] y)
        <float s = {0.0625}, int8 z = {0}, int8[2,2] w, float[1,2] b>
        { p = QuantizeLinear(x, s, z)  a = DequantizeLinear(p, s, z)
          k = DequantizeLinear(w, s, z)  y = Gemm(a, k, b) }""",
        w=np.int8([[3, -7], [127, 1]]),
        b=np.float32([[0.5, 0]]),
    )
    assert done.sites == 0
