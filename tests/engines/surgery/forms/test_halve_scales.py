from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.forms.halve_scales import HalveScales

TEXT = """g (float16[1,4,3,3] x) => (float16[1,2,3,3] y) <int8 z = {0}> {
    h = Cast<to=1>(x)
    q = QuantizeLinear(h, s, z)
    e = DequantizeLinear(q, s, z)
    d = Cast<to=10>(e)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    v = Cast<to=10>(c)
    y = Conv(d, v)
}"""
CODES = np.random.default_rng(0).integers(-127, 128, (2, 4, 1, 1)).astype(np.int8)
CONSTANTS = {
    "s": np.float32(0.05),
    "w": CODES,
    "ws": np.array([0.01, 0.003], np.float32),
    "wz": np.zeros(2, np.int8),
}


def test_the_dequantizers_feed_the_convolution_directly(operate):
    done = operate(HalveScales(), TEXT, **CONSTANTS)
    assert done.sites == 3
    assert sorted(done.ops) == ["Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    scales = {node.inputs[1].values.dtype for node in done.graph.nodes if node.op != "Conv"}
    assert scales == {np.dtype(np.float16)}
    before, after = done.outputs()
    np.testing.assert_allclose(after, before, atol=2**-8 * np.abs(before).max())


def test_a_pair_whose_codes_are_an_output_keeps_fp32_and_so_does_its_product(operate):
    text = TEXT.replace("(float16[1,2,3,3] y)", "(float16[1,2,3,3] y, int8[1,4,3,3] q)")
    assert operate(HalveScales(), text, **CONSTANTS).sites == 0


def test_a_clip_in_front_becomes_fp16_too(operate):
    text = TEXT.replace("h = Cast<to=1>(x)", "k = Cast<to=1>(x)\n h = Clip(k, low, high)")
    done = operate(HalveScales(), text, **CONSTANTS, low=np.float32(-0.4), high=np.float32(0.35))
    assert (done.ops.count("Cast"), done.node("Clip").inputs[1].values.dtype) == (0, np.float16)
    before, after = done.outputs()
    np.testing.assert_allclose(after, before, atol=2**-8 * np.abs(before).max())


@pytest.mark.parametrize("scale", [1e-5, 1e-8, 1e5])
def test_scales_that_fp16_does_not_hold_keep_fp32_on_both_sides_of_the_product(scale, operate):
    weight = {**CONSTANTS, "ws": np.array([0.01, scale], np.float32)}
    assert operate(HalveScales(), TEXT, **weight).sites == 0
    assert operate(HalveScales(), TEXT, **{**CONSTANTS, "s": np.float32(scale)}).sites == 0


def test_a_dead_channel_does_not_keep_the_layer_in_fp32(operate):
    codes = CODES.copy()
    codes[1] = 0
    dead = {**CONSTANTS, "w": codes, "ws": np.array([0.01, 2.0**-24], np.float32)}
    done = operate(HalveScales(), TEXT, **dead)
    assert done.sites == 3
    assert not done.outputs()[1][0, 1].any()


def test_what_computes_in_fp32_stays(operate):
    single = (
        TEXT.replace("float16", "float")
        .replace("Cast<to=10>", "Identity")
        .replace("Cast<to=1>", "Identity")
    )
    assert operate(HalveScales(), single, **CONSTANTS).sites == 0


def test_files_older_than_fp16_scales_stay(operate):
    assert operate(HalveScales(), TEXT, opset=17, **CONSTANTS).sites == 0
