from __future__ import annotations

import numpy as np

from reptrt.engines.surgery.repair.strip_dead_nodes import StripDeadNodes


def test_unused_nodes_and_initializers_go(operate):
    done = operate(
        StripDeadNodes(),
        "g (float[2] x) => (float[2] y) { y = Relu(x)  d = Mul(x, w) }",
        w=np.float32(2),
    )
    assert (done.sites, done.ops) == (1, ["Relu"])
    assert len(done.after.graph.initializer) == 0


def test_equal_constants_are_stored_once(operate):
    done = operate(
        StripDeadNodes(),
        "g (float[2] x) => (float[2] y) { a = Mul(x, u)  b = Add(a, v)  y = Sub(b, w) }",
        u=np.float32(2),
        v=np.float32(2),
        w=np.float32(3),
    )
    assert done.sites == 1
    assert sorted(i.name for i in done.after.graph.initializer) == ["u", "w"]
    np.testing.assert_array_equal(*done.outputs())


def test_constants_of_another_type_or_shape_are_left_alone(operate):
    done = operate(
        StripDeadNodes(),
        """g (float[2] x) => (float[2] y) <int8 z = {0}> {
            a = Add(x, u)
            b = Add(a, v)
            q = QuantizeLinear(b, s, z)
            y = DequantizeLinear(q, s, z)
        }""",
        u=np.float32(0),
        v=np.zeros(1, np.float32),
        s=np.float32(1),
    )
    assert done.sites == 0


def test_unused_outputs_in_the_middle_keep_their_place(operate):
    done = operate(
        StripDeadNodes(),
        "g (float[4] x) => (float[2] y) { a, y = Split<axis=0>(x, halves) }",
        halves=np.array([2, 2]),
    )
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs())


def test_codes_are_not_shared_with_a_zero_point(operate):
    done = operate(
        StripDeadNodes(),
        """g (float[4] x) => (float[4] y) <float s = {0.5}, int8 z = {0}, int8 c = {0}> {
            d = DequantizeLinear(c, s, z)
            y = Add(x, d)
        }""",
    )
    codes, _, zero_point = done.node("DequantizeLinear").inputs
    assert codes is not zero_point
