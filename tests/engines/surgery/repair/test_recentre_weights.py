from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.repair.recentre_weights import RecentreWeights

TEXT = """g (float[1,2] x) => (float[1,3] y) {
    d = DequantizeLinear<axis=0>(w, s, z)
    t = Transpose<perm=[1,0]>(d)
    y = MatMul(x, t)
}"""


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_codes_that_fit_are_moved_exactly(dtype, operate):
    codes = np.array([[10, 100], [90, 3], [50, 60]], dtype)
    zeros = np.array([20, 3, 60], dtype)
    done = operate(RecentreWeights(), TEXT, w=codes, s=[0.5, 0.25, 2.0], z=zeros)
    moved, scale, zero = (t.values for t in done.node("DequantizeLinear").inputs)
    assert (moved.dtype, moved.tolist()) == (np.int8, [[-10, 80], [87, 0], [-10, 0]])
    assert scale.tolist() == [0.5, 0.25, 2.0]
    assert (zero.dtype, zero.tolist()) == (np.int8, [0, 0, 0])
    np.testing.assert_array_equal(*done.outputs())


def test_only_the_channel_that_does_not_fit_gets_a_larger_scale(operate):
    codes = np.array([[0, 255], [0, 128], [128, 200]], np.uint8)
    zeros = np.array([0, 128, 128], np.uint8)
    done = operate(RecentreWeights(), TEXT, w=codes, s=[1.0, 1.0, 1.0], z=zeros)
    moved, scale, _ = (t.values for t in done.node("DequantizeLinear").inputs)
    assert moved.tolist() == [[0, 127], [-128, 0], [0, 72]]
    np.testing.assert_allclose(scale, [255 / 127, 1.0, 1.0])
    np.testing.assert_allclose(*done.outputs(), rtol=1e-6)


def test_a_per_tensor_weight_that_does_not_fit_is_within_half_a_new_step(operate):
    codes = np.random.default_rng(0).integers(0, 256, size=(3, 2)).astype(np.uint8)
    done = operate(RecentreWeights(), TEXT, w=codes, s=np.float32(0.5), z=np.uint8(10))
    moved, scale, _ = (t.values for t in done.node("DequantizeLinear").inputs)
    error = np.abs((codes.astype(float) - 10) * 0.5 - moved.astype(float) * scale)
    assert scale.shape == ()
    assert error.max() <= scale / 2


def test_symmetric_weights_and_activations_are_left_alone(operate):
    done = operate(
        RecentreWeights(),
        """g (float[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}, uint8 u = {7}> {
            d = DequantizeLinear(w, s, z)
            q = QuantizeLinear(x, s, u)
            e = DequantizeLinear(q, s, u)
            y = Add(d, e)
        }""",
        w=np.array([-128, 127], np.int8),
    )
    assert done.sites == 0


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("y = Conv(x, d)", (3, 2, 1, 1)),
        ("f = Flatten(x)\n y = Gemm<transB=1>(f, d)", (3, 2)),
        ("f = Flatten(x)\n y = Gemm(f, d)", (2, 3)),
    ],
)
def test_a_per_tensor_weight_gets_channel_scales_where_one_does_not_fit(text, shape, operate):
    codes = np.random.default_rng(0).integers(100, 150, size=shape).astype(np.uint8)
    channels = codes.swapaxes(0, 1) if shape == (2, 3) else codes
    channels[1] = 255  # a view: 255 - 10 does not fit
    done = operate(
        RecentreWeights(),
        f"""g (float[1,2,1,1] x) => (float{"[1,3,1,1]" if "Conv" in text else "[1,3]"} y) {{
            d = DequantizeLinear(w, s, z)
            {text}
        }}""",
        w=codes,
        s=np.float32(0.5),
        z=np.uint8(10),
    )
    scale = done.node("DequantizeLinear").inputs[1].values
    assert scale.shape == (3,)
    assert scale[1] == np.float32(0.5 * 245 / 127)
    fits = channels[[0, 2]].reshape(2, -1).max(axis=1) <= 137
    np.testing.assert_array_equal(scale[[0, 2]] == 0.5, fits)
    before, after = done.outputs()
    assert np.abs(before - after).max() < scale[1] * 4  # half a step of two weights, x below 4


def test_before_axes_a_per_tensor_weight_keeps_one_scale(operate):
    done = operate(
        RecentreWeights(),
        """g (float[1,2,1,1] x) => (float[1,3,1,1] y) {
            d = DequantizeLinear(w, s, z)
            y = Conv(x, d)
        }""",
        opset=10,
        w=np.full((3, 2, 1, 1), 255, np.uint8),
        s=np.float32(0.5),
        z=np.uint8(10),
    )
    assert done.node("DequantizeLinear").inputs[1].values.shape == ()
