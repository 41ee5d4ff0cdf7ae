from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.forms.float_depthwise import FloatDepthwise

TEXT = """g (float16[1,4,5,5] x) => (float16[1,4,5,5] y) <float s = {0.05}, int8 z = {0}> {
    r = Relu(x)
    h = Cast<to=1>(r)
    q = QuantizeLinear(h, s, z)
    e = DequantizeLinear(q, s, z)
    d = Cast<to=10>(e)
    c = DequantizeLinear<axis=0>(w, ws, wz)
    v = Cast<to=10>(c)
    y = Conv<pads=[1,1,1,1], group=4>(d, v)
}"""
CODES = np.random.default_rng(0).integers(-127, 128, (4, 1, 3, 3)).astype(np.int8)
SCALES = np.array([0.01, 0.02, 0.005, 0.03], np.float32)
CONSTANTS = {"w": CODES, "ws": SCALES, "wz": np.zeros(4, np.int8)}


def test_a_depthwise_convolution_loses_its_pairs_and_keeps_the_values_of_its_grid(operate):
    done = operate(FloatDepthwise(), TEXT, **CONSTANTS)
    assert (done.sites, done.ops) == (1, ["Relu", "Conv"])
    weight = done.node("Conv").inputs[1].values
    assert weight.dtype == np.float16
    np.testing.assert_allclose(weight, CODES * SCALES.reshape(4, 1, 1, 1), rtol=2**-11)


def test_only_the_rounding_of_the_activation_goes(operate):
    on_grid = np.random.default_rng(1).integers(-100, 100, (1, 4, 5, 5)) * 0.05
    before, after = operate(FloatDepthwise(), TEXT, **CONSTANTS).outputs(
        {"x": on_grid.astype(np.float16)}
    )
    np.testing.assert_allclose(after, before, atol=2**-9 * np.abs(before).max())


def test_saturation_that_may_be_an_activation_function_stays_as_a_clip(operate):
    text = TEXT.replace("r = Relu(x)", "r = Add(x, o)")
    done = operate(FloatDepthwise(), text, **CONSTANTS, o=np.float16(0))
    assert done.ops == ["Add", "Clip", "Conv"]
    bounds = [bound.values for bound in done.node("Clip").inputs[1:]]
    np.testing.assert_allclose(bounds, [-6.4, 6.35], rtol=2**-11)
    far = {"x": np.full((1, 4, 5, 5), -50, np.float16)}
    np.testing.assert_allclose(*done.outputs(far), atol=0.05)


def test_other_readers_keep_the_pair(operate):
    text = TEXT.replace("y = Conv", "k = Conv").replace("(d, v)\n", "(d, v)\n y = Add(k, d)\n")
    done = operate(FloatDepthwise(), text, **CONSTANTS)
    assert done.node("Conv").inputs[0].name == "r"
    assert "QuantizeLinear" in done.ops


def test_a_concat_for_it_alone_joins_what_the_pairs_read(operate):
    text = (
        TEXT.replace("float16[1,4,5,5] x", "float16[1,2,5,5] x")
        .replace("y = Conv", "j = Concat<axis=1>(d, d)\n y = Conv")
        .replace("(d, v)", "(j, v)")
    )
    assert operate(FloatDepthwise(), text, **CONSTANTS).ops == ["Relu", "Concat", "Conv"]


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_with_several_channels_a_group_stay_int8(group, operate):
    codes = np.ones((4, 4 // group, 3, 3), np.int8)
    text = TEXT.replace("group=4", f"group={group}")
    assert operate(FloatDepthwise(), text, **{**CONSTANTS, "w": codes}).sites == 0
