from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery import SurgeryError
from reptrt.engines.surgery.repair.recentre_activations import RecentreActivations

TEXT = """g (float[1024] x) => (float[1024] y) {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s, z)
}"""
FEED = {"x": np.linspace(-3, 3, 1024, dtype=np.float32)}


@pytest.mark.parametrize(
    "zero_point", [np.uint8(0), np.int8(-128), np.uint8(100), np.int8(100), np.int8(127)]
)
def test_any_zero_point_becomes_0_and_the_values_stay(zero_point, operate):
    done = operate(RecentreActivations(), TEXT, s=np.float32(1 / 64), z=zero_point)
    assert done.ops == ["Add", "QuantizeLinear", "DequantizeLinear", "Sub"]
    for op in ("QuantizeLinear", "DequantizeLinear"):
        scale, zero = (t.values for t in done.node(op).inputs[1:])
        assert scale == np.float32(1 / 64)
        assert (zero.dtype, zero.item()) == (np.int8, 0)
    # Off the ties between two codes, and with a step that is a power of two, nothing is rounded.
    feed = {"x": (np.arange(1024, dtype=np.float32) - 512) / 128 + np.float32(1 / 512)}
    before, after = done.outputs(feed)
    np.testing.assert_array_equal(before, after)
    assert np.unique(before).size == 256  # it saturates at both ends, and so does the new grid


def test_a_step_that_is_no_power_of_two_moves_values_between_codes_at_ties_only(operate):
    done = operate(RecentreActivations(), TEXT, s=np.float32(0.01), z=np.uint8(77))
    before, after = done.outputs(FEED)
    assert np.abs(before - after).max() <= 0.01001
    assert (np.abs(before - after) > 0.005).mean() < 0.01


def test_the_grid_of_128_is_bit_equal(operate):
    done = operate(RecentreActivations(), TEXT, s=np.float32(0.01), z=np.uint8(128))
    assert done.ops == ["QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(*done.outputs(FEED))


def test_other_readers_of_the_tensor_are_not_clipped(operate):
    done = operate(
        RecentreActivations(),
        """g (float[4] x) => (float[4] y) <float s = {0.01}, uint8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = Add(d, x)
        }""",
    )
    feed = {"x": np.array([-1, -0.5, 0.5, 1], np.float32)}
    np.testing.assert_allclose(done.outputs(feed)[1], [-1, -0.5, 1.0, 2.0], atol=0.01)


def test_symmetric_int8_is_left_alone(operate):
    assert operate(RecentreActivations(), TEXT, s=np.float32(0.01), z=np.int8(0)).sites == 0


def test_uint8_codes_that_come_from_outside_are_refused(operate):
    with pytest.raises(SurgeryError, match="uint8 with zero point 3"):
        operate(
            RecentreActivations(),
            """g (uint8[4] x) => (float[4] y) <float s = {0.01}, uint8 z = {3}> {
                y = DequantizeLinear(x, s, z)
            }""",
        )


def test_a_pair_with_two_grids_is_refused(operate):
    with pytest.raises(SurgeryError, match="on another grid"):
        operate(
            RecentreActivations(),
            TEXT.replace("y = DequantizeLinear(q, s, z)", "y = DequantizeLinear(q, t, z)"),
            s=np.float32(0.01),
            t=np.float32(0.02),
            z=np.uint8(0),
        )


def test_per_channel_zero_points_of_activations_are_refused(operate):
    with pytest.raises(SurgeryError, match="per-channel zero point"):
        operate(
            RecentreActivations(),
            """g (float[1,2] x) => (float[1,2] y) {
                q = QuantizeLinear<axis=1>(x, s, z)
                y = DequantizeLinear<axis=1>(q, s, z)
            }""",
            s=[0.1, 0.2],
            z=np.array([1, 2], np.uint8),
        )
