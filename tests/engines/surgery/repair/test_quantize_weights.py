from __future__ import annotations

import numpy as np

from reptrt.engines.surgery.repair.quantize_weights import QuantizeWeights

TEXT = """g (float[2,2] x) => (float[2,2] y) {
    q = QuantizeLinear<axis=0>(w, s, z)
    d = DequantizeLinear<axis=0>(q, s, z)
    y = MatMul(x, d)
}"""


def test_codes_round_half_to_even_and_saturate(operate):
    done = operate(
        QuantizeWeights(),
        TEXT,
        w=[[0.25, 0.75], [-1000.0, 5.0]],
        s=[0.5, 2.0],
        z=np.zeros(2, np.int8),
    )
    assert (done.sites, done.ops) == (1, ["DequantizeLinear", "MatMul"])
    codes = done.node("DequantizeLinear").inputs[0].values
    assert (codes.dtype, codes.tolist()) == (np.int8, [[0, 2], [-128, 2]])
    np.testing.assert_array_equal(*done.outputs())


def test_codes_are_those_of_onnx_runtime(operate):
    rng = np.random.default_rng(1)
    done = operate(
        QuantizeWeights(),
        TEXT.replace("[2,2]", "[64,64]"),
        w=rng.normal(size=(64, 64)),
        s=rng.uniform(0.001, 0.02, size=64),
        z=rng.integers(0, 255, size=64).astype(np.uint8),
    )
    np.testing.assert_array_equal(*done.outputs())


def test_a_dead_channel_becomes_zero_codes(operate):
    done = operate(
        QuantizeWeights(), TEXT, w=[[0.0, 1.0], [3.0, 5.0]], s=[0.0, 1.0], z=np.zeros(2, np.int8)
    )
    assert done.node("DequantizeLinear").inputs[0].values.tolist() == [[0, 0], [3, 5]]


def test_activations_and_float8_weights_are_left_alone(operate):
    done = operate(
        QuantizeWeights(),
        """g (float[2] x) => (float[2] y)
        <float s = {0.5}, int8 z = {0}, float8e4m3fn f = {0}, float[2] w = {1.0, 2.0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            u = QuantizeLinear(w, s, f)
            v = DequantizeLinear(u, s, f)
            y = Add(d, v)
        }""",
    )
    assert done.sites == 0


def test_a_constant_that_is_joined_to_others_keeps_its_pair(operate):
    done = operate(
        QuantizeWeights(),
        """g (float[2,2] x) => (float[2,4] y) {
            q = QuantizeLinear(w, s, z)
            d = DequantizeLinear(q, s, z)
            y = Concat<axis=1>(x, d)
        }""",
        w=[[0.0, 0.0], [0.0, 1.0]],
        s=0.5,
        z=np.int8(0),
    )
    assert (done.sites, done.ops) == (0, ["QuantizeLinear", "DequantizeLinear", "Concat"])
