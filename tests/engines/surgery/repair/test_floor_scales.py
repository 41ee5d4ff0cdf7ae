from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery import SurgeryError
from reptrt.engines.surgery.repair.floor_scales import FLOOR, FloorScales

WEIGHTS = """g (float[2,3] x) => (float[2,2] y) {
    d = DequantizeLinear<axis=1>(w, s, z)
    y = MatMul(x, d)
}"""
PAIR = """g (float[4] x) => (float[4] y) {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s, z)
}"""


@pytest.mark.parametrize("dead", [0.0, 1e-40], ids=["zero", "subnormal"])
def test_dead_weight_channels_get_a_positive_scale_and_stay_zero(dead, operate):
    done = operate(
        FloorScales(),
        WEIGHTS,
        w=np.array([[5, 1], [-5, 2], [127, 3]], np.int8),
        s=np.array([dead, 0.5], np.float32),
        z=np.zeros(2, np.int8),
    )
    codes, scale = (t.values for t in done.node("DequantizeLinear").inputs[:2])
    assert scale.tolist() == [np.float32(FLOOR), 0.5]
    assert codes.tolist() == [[0, 1], [0, 2], [0, 3]]
    np.testing.assert_allclose(*done.outputs(), atol=1e-36)


def test_a_negative_weight_scale_is_turned_with_its_codes(operate):
    done = operate(
        FloorScales(),
        WEIGHTS,
        w=np.array([[5, 1], [-5, 2], [-127, 3]], np.int8),
        s=[-0.25, 0.5],
        z=np.zeros(2, np.int8),
    )
    assert done.node("DequantizeLinear").inputs[1].values.tolist() == [0.25, 0.5]
    np.testing.assert_array_equal(*done.outputs())


def test_the_one_code_without_a_negative_moves_one_step(operate):
    done = operate(
        FloorScales(),
        WEIGHTS,
        w=np.array([[-128, 1], [0, 2], [0, 3]], np.int8),
        s=[-0.25, 0.5],
        z=np.zeros(2, np.int8),
    )
    assert done.node("DequantizeLinear").inputs[0].values[0, 0] == 127


def test_a_dead_activation_stays_next_to_zero(operate):
    done = operate(FloorScales(), PAIR, s=np.float32(0), z=np.int8(0))
    assert done.sites == 2
    assert 0 < np.abs(done.outputs()[1]).max() <= 128 * FLOOR


def test_a_scale_that_underflowed_in_half_precision_is_raised(operate):
    done = operate(
        FloorScales(), PAIR.replace("float", "float16"), s=np.float16(1e-8), z=np.int8(0)
    )
    scale = done.node("QuantizeLinear").inputs[1].values
    assert (scale.dtype, float(scale)) == (np.float16, FLOOR)


@pytest.mark.parametrize("healthy", [np.float32(1e-30), np.float32(3.0), np.float16(6e-8)])
def test_healthy_scales_are_left_alone_however_small(healthy, operate):
    text = PAIR.replace("float", "float16") if healthy.dtype == np.float16 else PAIR
    assert operate(FloorScales(), text, s=healthy, z=np.int8(0)).sites == 0


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [(np.nan, 0, "NaN or infinite"), (np.inf, 0, "NaN or infinite"), (-1.0, 3, "no positive twin")],
)
def test_scales_that_mean_nothing_are_refused(scale, zero_point, message, operate):
    with pytest.raises(SurgeryError, match=message):
        operate(FloorScales(), PAIR, s=np.float32(scale), z=np.int8(zero_point))


def test_a_scale_computed_at_run_time_is_refused(operate):
    with pytest.raises(SurgeryError, match="computed at run time"):
        operate(
            FloorScales(),
            """g (float[4] x) => (float[4] y) <int8 z = {0}> {
                s = ReduceMax<keepdims=0>(x)
                q = QuantizeLinear(x, s, z)
                y = DequantizeLinear(q, s, z)
            }""",
        )
