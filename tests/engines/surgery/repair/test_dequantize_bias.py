from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery import SurgeryError
from reptrt.engines.surgery.repair.dequantize_bias import DequantizeBias


@pytest.mark.parametrize("with_zero", [False, True])
def test_an_int32_bias_becomes_the_float_values_that_it_stood_for(with_zero, operate):
    zero = {"z": np.zeros(2, np.int32)} if with_zero else {}
    done = operate(
        DequantizeBias(),
        f"""g (float[1,2] x) => (float[1,2] y) {{
            d = DequantizeLinear<axis=0>(b, s{", z" if with_zero else ""})
            y = Add(x, d)
        }}""",
        b=np.array([-7, 100_000_000], np.int32),
        s=[1e-9, 0.25e-6],
        **zero,
    )
    assert (done.sites, done.ops) == (1, ["Add"])
    np.testing.assert_allclose(done.node("Add").inputs[1].values, [-7e-9, 25.0], rtol=1e-6)
    np.testing.assert_array_equal(*done.outputs())


def test_sixteen_bit_activations_are_refused(operate):
    with pytest.raises(SurgeryError, match="reads int16, TensorRT takes int8"):
        operate(
            DequantizeBias(),
            """g (float[2] x) => (float[2] y) <float s = {0.5}, int16 z = {0}> {
                q = QuantizeLinear(x, s, z)
                y = DequantizeLinear(q, s, z)
            }""",
            opset=21,
        )


def test_codes_that_only_float_operators_read_become_float_and_weights_stay(operate):
    done = operate(
        DequantizeBias(),
        """g (float[2,3] x) => (float[2,3] y) <float s = {0.5}, uint8 z = {3}> {
            a = DequantizeLinear(c, s, z)
            b = Add(x, a)
            d = DequantizeLinear(w, s, z)
            y = MatMul(b, d)
        }""",
        c=np.array([1, 2, 3], np.uint8),
        w=np.arange(9, dtype=np.uint8).reshape(3, 3),
    )
    assert done.ops == ["Add", "DequantizeLinear", "MatMul"]
    np.testing.assert_array_equal(*done.outputs())
