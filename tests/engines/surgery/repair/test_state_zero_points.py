from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery import SurgeryError
from reptrt.engines.surgery.repair.state_zero_points import StateZeroPoints


def test_a_pair_without_zero_points_is_uint8_as_onnx_says(operate):
    done = operate(
        StateZeroPoints(),
        """g (float[4] x) => (float[4] y) <float s = {0.01}> {
            q = QuantizeLinear(x, s)
            y = DequantizeLinear(q, s)
        }""",
    )
    assert done.sites == 2
    for op in ("QuantizeLinear", "DequantizeLinear"):
        zero = done.node(op).inputs[2].values
        assert (zero.dtype, zero.item()) == (np.uint8, 0)
    np.testing.assert_array_equal(*done.outputs())


def test_int8_weights_get_one_int8_zero_per_channel(operate):
    done = operate(
        StateZeroPoints(),
        """g (float[2,2] x) => (float[2,2] y) {
            d = DequantizeLinear<axis=0>(w, s)
            y = MatMul(x, d)
        }""",
        w=np.array([[1, 2], [3, 4]], np.int8),
        s=[0.5, 0.25],
    )
    zero = done.node("DequantizeLinear").inputs[2].values
    assert (zero.dtype, zero.tolist()) == (np.int8, [0, 0])
    np.testing.assert_array_equal(*done.outputs())


def test_the_output_type_attribute_is_obeyed_and_then_said_by_the_zero_point(operate):
    done = operate(
        StateZeroPoints(),
        """g (float[4] x) => (float[4] y) <float s = {0.01}> {
            q = QuantizeLinear<output_dtype = 3>(x, s)
            y = DequantizeLinear(q, s)
        }""",
        opset=21,
    )
    assert done.node("QuantizeLinear").inputs[2].values.dtype == np.int8
    assert "output_dtype" not in done.node("QuantizeLinear").attrs
    np.testing.assert_array_equal(*done.outputs())


def test_stated_zero_points_and_int32_biases_are_left_alone(operate):
    done = operate(
        StateZeroPoints(),
        """g (float[2] x) => (float[2] y) <float s = {0.5}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            e = DequantizeLinear(b, s)
            y = Add(d, e)
        }""",
        b=np.array([1, 2], np.int32),
    )
    assert done.sites == 0


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_operator_formats_are_refused_with_the_way_out(op, operate):
    with pytest.raises(SurgeryError, match=r"dynamic quantization.*requantize"):
        operate(
            StateZeroPoints(),
            f"g (int8[1,1,2,2] x, int8[1,1,2,2] w) => (int32[1,1,1,1] y) {{ y = {op}(x, w) }}",
        )
