from __future__ import annotations

import numpy as np
import pytest

from pipeline.surgery.recentre_weights import RecentreWeights

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
