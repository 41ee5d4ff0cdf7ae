from __future__ import annotations

import numpy as np

from reptrt.engines.surgery.repair.fold_constants import FoldConstants


def test_arithmetic_on_constants_becomes_one_initializer(operate):
    done = operate(
        FoldConstants(),
        "g (float[2] x) => (float[2] y) { c = Neg(two)  d = Add(c, c)  y = Mul(x, d) }",
        two=[2.0, 3.0],
    )
    assert (done.sites, done.ops) == (2, ["Mul"])
    np.testing.assert_array_equal(done.node("Mul").inputs[1].values, [-4.0, -6.0])
    np.testing.assert_array_equal(*done.outputs())


def test_a_constant_node_becomes_an_initializer(operate):
    done = operate(
        FoldConstants(),
        "g (float[1] x) => (float[1] y) { s = Constant<value = float {0.5}>()  y = Mul(x, s) }",
    )
    assert (done.sites, done.ops) == (1, ["Mul"])


def test_float_weights_are_moved_up_to_their_quantizer_but_never_through_it(operate):
    done = operate(
        FoldConstants(),
        """g (float[1,3] x) => (float[1,2] y) {
            t = Transpose<perm=[1,0]>(w)
            q = QuantizeLinear<axis=1>(t, s, z)
            d = DequantizeLinear<axis=1>(q, s, z)
            y = MatMul(x, d)
        }""",
        w=np.arange(6.0).reshape(2, 3),
        s=[0.5, 0.25],
        z=np.zeros(2, np.int8),
    )
    assert done.ops == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    np.testing.assert_array_equal(*done.outputs())


def test_int8_weights_behind_dequantize_are_left_alone(operate):
    done = operate(
        FoldConstants(),
        """g (float[1,2] x) => (float[1,2] y) <float s = {0.5}, int8 z = {0}> {
            d = DequantizeLinear(w, s, z)
            t = Transpose<perm=[1,0]>(d)
            y = MatMul(x, t)
        }""",
        w=np.array([[1, 2], [3, 4]], np.int8),
    )
    assert (done.sites, done.ops) == (0, ["DequantizeLinear", "Transpose", "MatMul"])


def test_random_operators_are_not_frozen_into_constants(operate):
    done = operate(
        FoldConstants(),
        "g (float[2] x) => (float[2] y) { r = RandomNormal<shape=[2]>()  y = Add(x, r) }",
    )
    assert (done.sites, done.ops) == (0, ["RandomNormal", "Add"])


def test_nothing_is_printed_where_onnx_runtime_has_remarks(operate, capfd):
    done = operate(
        FoldConstants(),
        "g (float[1,2] x) => (float[1,2] y) { u = Unsqueeze(w, axes)  y = Mul(x, u) }",
        w=[2.0, 3.0],
        axes=np.array([0]),
    )
    assert (done.sites, done.ops) == (1, ["Mul"])
    assert capfd.readouterr().err == ""
