from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.tie_concat_scales import TieConcatScales

HEAD = """g (float[1,2,4,4] x, float[1,2,4,4] u) => (float[1,c,h,w] y)
<float a = {0.25}, float b = {0.5}, float s = {0.125}, int8 z = {0}>"""
PAIRS = """
    p = QuantizeLinear(x, a, z)  i = DequantizeLinear(p, a, z)
    q = QuantizeLinear(u, b, z)  j = DequantizeLinear(q, b, z)
"""


def scales(done, op="QuantizeLinear"):
    return {n.outputs[0].name: float(n.inputs[1].values) for n in done.graph.nodes if n.op == op}


def test_the_pairs_of_a_concat_share_the_largest_scale(operate):
    done = operate(TieConcatScales(), HEAD + "{" + PAIRS + "y = Concat<axis=1>(i, j) }")
    assert done.sites == 1
    assert scales(done) == {"p": 0.5, "q": 0.5}
    assert scales(done, "DequantizeLinear") == {"i": 0.5, "j": 0.5}
    before, after = done.outputs()
    assert np.abs(before - after).max() <= 0.5


def test_a_tensor_whose_scale_grows_still_saturates_where_it_did(operate):
    done = operate(TieConcatScales(), HEAD + "{" + PAIRS + "y = Concat<axis=1>(i, j) }")
    feed = {"x": np.full((1, 2, 4, 4), 1000, np.float32), "u": np.zeros((1, 2, 4, 4), np.float32)}
    before, after = done.outputs(feed)
    assert before.max() == 127 * 0.25
    assert abs(after.max() - before.max()) <= 0.5


def test_the_pair_after_the_concat_belongs_to_the_group(operate):
    done = operate(
        TieConcatScales(),
        HEAD
        + "{"
        + PAIRS.replace("b, z", "a, z")
        + """c = Concat<axis=1>(i, j)
            r = QuantizeLinear(c, b, z)
            y = DequantizeLinear(r, b, z)
        }""",
    )
    assert scales(done) == {"p": 0.5, "q": 0.5, "r": 0.5}


def test_a_smaller_scale_after_the_concat_keeps_its_saturation(operate):
    done = operate(
        TieConcatScales(),
        HEAD
        + "{"
        + PAIRS
        + """c = Concat<axis=1>(i, j)
            r = QuantizeLinear(c, s, z)
            y = DequantizeLinear(r, s, z)
        }""",
    )
    assert set(scales(done).values()) == {0.5}
    feed = {k: np.linspace(-90, 90, 32, dtype=np.float32).reshape(1, 2, 4, 4) for k in "xu"}
    before, after = done.outputs(feed)
    assert before.max() == 127 * 0.125
    assert np.abs(before - after).max() <= 0.5


def test_scales_are_carried_through_max_pools_and_chains_of_concats(operate):
    done = operate(
        TieConcatScales(),
        HEAD
        + "{"
        + PAIRS
        + """m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(i)
            r = QuantizeLinear(m, s, z)   k = DequantizeLinear(r, s, z)
            c = Concat<axis=1>(i, k)
            t = QuantizeLinear(c, a, z)   l = DequantizeLinear(t, a, z)
            y = Concat<axis=1>(l, j)
        }""",
    )
    assert scales(done) == {"p": 0.5, "q": 0.5, "r": 0.5, "t": 0.5}


def test_a_shared_scale_initializer_keeps_its_value_for_others(operate):
    done = operate(
        TieConcatScales(),
        HEAD
        + "{"
        + PAIRS
        + """c = Concat<axis=1>(i, j)
            e = Neg(c)
            r = QuantizeLinear(e, a, z)
            y = DequantizeLinear(r, a, z)
        }""",
    )
    assert scales(done) == {"p": 0.5, "q": 0.5, "r": 0.25}


@pytest.mark.parametrize(
    "body",
    [
        PAIRS.replace("b, z", "a, z") + "y = Concat<axis=1>(i, j)",
        PAIRS + "k = Relu(j)  y = Concat<axis=1>(i, j, k)",
        PAIRS + "y = Add(i, j)",
        PAIRS
        + """m = MaxPool<kernel_shape=[2,2]>(i)
            r = QuantizeLinear(m, s, z)  k = DequantizeLinear(r, s, z)
            y = Add(k, k)""",
        PAIRS + "y = Concat<axis=1>(i, x)",
    ],
    ids=["equal scales", "float input", "add", "pool without concat", "graph input"],
)
def test_other_pairs_are_left_alone(body, operate):
    done = operate(TieConcatScales(), f"{HEAD} {{ {body} }}")
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs())
