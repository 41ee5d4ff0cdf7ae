from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.forms.scale_behind_product import ScaleBehindProduct

GRID = "<float s = {0.05}, int8 z = {0}>"
READ = """h = Cast<to=1>(x)
    q = QuantizeLinear(h, s, z)
    e = DequantizeLinear(q, s, z)
    d = Cast<to=10>(e)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    v = Cast<to=10>(c)"""
CONV = f"""g (float16[1,4,5,5] x) => (float16[1,3,5,5] y) {GRID} {{
    {READ}
    t = Conv<pads=[1,1,1,1]>(d, v, b)
    y = Relu(t)
}}"""
RANDOM = np.random.default_rng(0)
SCALES = np.array([0.002, 0.011, 0.3], np.float32)


def weight(*shape: int, scales: np.ndarray = SCALES) -> dict[str, np.ndarray]:
    codes = RANDOM.integers(-127, 128, shape).astype(np.int8)
    return {"w": codes, "ws": scales, "wz": np.zeros(len(scales), np.int8)}


CONSTANTS = {**weight(3, 4, 3, 3), "b": np.array([0.5, -2, 9], np.float16)}


def test_a_convolution_gets_one_exact_scale_and_its_factors_follow(operate):
    done = operate(ScaleBehindProduct(), CONV, **CONSTANTS)
    assert (done.sites, done.ops[-3:]) == (1, ["Conv", "Mul", "Relu"])
    dequantize = done.node("Mul").i().i(1)
    scale = dequantize.inputs[1].values
    assert (scale.dtype, scale.shape, scale) == (np.float16, (), 2.0**-6)  # of 2 ** -6.4
    np.testing.assert_array_equal(dequantize.inputs[0].values, CONSTANTS["w"])
    factors = done.node("Mul").inputs[1].values
    assert factors.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(factors.ravel(), SCALES * 64, rtol=2**-11)


def test_the_values_stay_but_for_a_rounding_to_eleven_bits(operate):
    before, after = operate(ScaleBehindProduct(), CONV, **CONSTANTS).outputs()
    largest = np.abs(before).max(axis=(0, 2, 3), keepdims=True)
    assert (np.abs(after.astype(float) - before) <= 2**-9 * largest).all()
    assert (after != 0).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_product_keeps_its_bias_behind_the_factors(transposed, operate):
    turn = "u = Transpose<perm=[1,0]>(v)" if transposed else "u = Identity(v)"
    text = f"""g (float16[2,4] x) => (float16[2,3] y) {GRID} {{
        {READ if transposed else READ.replace("axis=0", "axis=1")}
        {turn}
        t = MatMul(d, u)
        y = Add(t, b)
    }}"""
    constants = {**weight(*((3, 4) if transposed else (4, 3))), "b": CONSTANTS["b"]}
    done = operate(
        ScaleBehindProduct(),
        text.replace("u = Identity(v)", "").replace("(d, u)", "(d, u)" if transposed else "(d, v)"),
        **constants,
    )
    assert (done.sites, done.ops[-3:]) == (1, ["MatMul", "Mul", "Add"])
    np.testing.assert_allclose(*done.outputs(), rtol=2**-9, atol=0.01)


def test_factors_of_attention_stand_behind_the_cut_into_heads(operate):
    text = f"""g (float16[2,4] x) => (float16[2,3,2] y) {GRID} {{
        {READ.replace("axis=0", "axis=1")}
        t = MatMul(d, v)
        r = Reshape(t, shape)
        y = Add(r, b)
    }}"""
    constants = weight(4, 6, scales=np.geomspace(0.001, 0.1, 6).astype(np.float32))
    done = operate(
        ScaleBehindProduct(),
        text,
        **constants,
        b=np.ones((3, 2), np.float16),
        shape=np.array([2, 3, 2]),
    )
    assert done.ops[-4:] == ["MatMul", "Reshape", "Mul", "Add"]
    np.testing.assert_allclose(*done.outputs(), rtol=2**-9, atol=0.01)


def test_factors_stand_behind_a_relu_that_a_float_convolution_reads(operate):
    text = CONV.replace("(float16[1,3,5,5] y)", "(float16[1,2,5,5] y)").replace(
        "y = Relu(t)", "r = Relu(t)\n y = Conv(r, f)"
    )
    done = operate(ScaleBehindProduct(), text, **CONSTANTS, f=np.ones((2, 3, 1, 1), np.float16))
    assert done.ops[-4:] == ["Conv", "Relu", "Mul", "Conv"]
    before, after = done.outputs()
    np.testing.assert_allclose(after, before, atol=2**-9 * np.abs(before).max())


def test_the_scale_shrinks_where_the_product_could_leave_fp16(operate):
    codes = np.full((3, 4, 3, 3), 127, np.int8)
    loud = {**CONSTANTS, "w": codes, "ws": np.array([1, 1, 2], np.float32)}
    done = operate(ScaleBehindProduct(), CONV.replace("0.05", "4.0"), **loud)
    scale = float(done.node("Mul").i().i(1).inputs[1].values)
    reach = np.abs(codes[0].astype(int)).sum() * 128 * 4.0
    assert scale * reach + 9 * scale / 2 <= 65504 < 2 * (scale * reach + 9 * scale / 2) + 1000


def test_a_dead_channel_decides_nothing_and_keeps_its_bias(operate):
    dead = {**CONSTANTS, "ws": np.array([0.01, 2.0**-24, 0.01], np.float32)}
    dead["w"] = CONSTANTS["w"].copy()
    dead["w"][1] = 0
    done = operate(ScaleBehindProduct(), CONV, **{**dead, "b": np.array([0, 3, 0], np.float16)})
    assert done.node("Mul").inputs[1].values.ravel()[1] == 1
    np.testing.assert_array_equal(done.outputs()[1][0, 1], np.full((5, 5), 3, np.float16))


@pytest.mark.parametrize(
    "scales", [[1e-12, 0.01, 1e4], [1e-9, 1e-9, 1e-9]], ids=["too far apart", "too small"]
)
def test_scales_that_fp16_cannot_hold_stay_per_channel(scales, operate):
    constants = {**CONSTANTS, "ws": np.array(scales, np.float32)}
    assert operate(ScaleBehindProduct(), CONV, **constants).sites == 0


def test_what_computes_in_fp32_or_is_quantized_on_one_side_stays(operate):
    single = (
        CONV.replace("float16", "float")
        .replace("Cast<to=10>(e)", "Identity(e)")
        .replace("Cast<to=10>(c)", "Identity(c)")
    )
    constants = {**CONSTANTS, "b": CONSTANTS["b"].astype(np.float32)}
    assert operate(ScaleBehindProduct(), single, **constants).sites == 0
    assert (
        operate(ScaleBehindProduct(), CONV.replace("(d, v, b)", "(x, v, b)"), **CONSTANTS).sites
        == 0
    )
