from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.repair.tie_concat_scales import TieConcatScales

HEAD = """g (float[1,2,4,4] x, float[1,2,4,4] u) => (float[1,c,h,w] y)
<float a = {0.25}, float b = {0.5}, float s = {0.125}, int8 z = {0}, float f = {0.01},
 float[3] g = {0.1, 0.2, 0.3}, int8[3] o = {0, 0, 0},
 int8[3,4,1,1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>"""
PAIRS = """
    p = QuantizeLinear(x, a, z)  i = DequantizeLinear(p, a, z)
    q = QuantizeLinear(u, b, z)  j = DequantizeLinear(q, b, z)
    v = DequantizeLinear<axis = 0>(w, g, o)
"""
FINE = PAIRS.replace("a, z", "f, z")
JOINED = "c = Concat<axis=1>(i, j)"


def scales(done, op="QuantizeLinear"):
    return {n.outputs[0].name: float(n.inputs[1].values) for n in done.graph.nodes if n.op == op}


def test_close_pairs_of_a_concat_that_a_layer_reads_share_the_larger_scale(operate):
    done = operate(TieConcatScales(), f"{HEAD} {{ {PAIRS} {JOINED} y = Conv(c, v) }}")
    assert done.sites == 1
    assert scales(done) == {"p": 0.5, "q": 0.5}
    before, after = done.outputs()
    assert np.abs(before - after).max() <= 0.5 * 4.2  # half a step of two inputs of weight 12 x 0.3


def test_a_tensor_whose_scale_grows_still_saturates_where_it_did(operate):
    done = operate(TieConcatScales(), f"{HEAD} {{ {PAIRS} {JOINED} y = Conv(c, v) }}")
    feed = {"x": np.full((1, 2, 4, 4), 1000, np.float32), "u": np.zeros((1, 2, 4, 4), np.float32)}
    before, after = done.outputs(feed)
    np.testing.assert_allclose(after, before, atol=0.5 * (9 + 10) * 0.3)


def test_far_pairs_keep_their_scales_and_the_concat_gets_a_pair_of_the_larger(operate):
    done = operate(TieConcatScales(), f"{HEAD} {{ {FINE} {JOINED} y = Conv(c, v) }}")
    assert done.sites == 1
    assert scales(done) == {"p": pytest.approx(0.01), "q": 0.5, "c_codes": 0.5}
    (conv,) = [node for node in done.graph.nodes if node.op == "Conv"]
    assert conv.inputs[0].name == "c_dequantized"


def test_what_else_reads_a_narrow_tensor_loses_nothing(operate):
    text = f"""{HEAD} {{ {FINE} {JOINED} d = Conv(c, v) e = ReduceSum(d) k = Concat<axis=1>(i, i)
        l = Conv(k, v) n = Mul(e, m) y = Add(l, n) }}"""
    done = operate(TieConcatScales(), text.replace("float f =", "float m = {0.0}, float f ="))
    np.testing.assert_array_equal(*done.outputs())


def test_a_float_reader_of_the_concat_reads_it_without_the_pair(operate):
    text = f"{HEAD} {{ {FINE} {JOINED} d = Conv(c, v) n = Neg(c) y = Concat<axis=1>(d, n) }}"
    done = operate(TieConcatScales(), text)
    (negation,) = [node for node in done.graph.nodes if node.op == "Neg"]
    assert negation.inputs[0].name == "c"


def test_a_layer_is_found_behind_what_only_moves_values(operate):
    body = f"{PAIRS} {JOINED} m = MaxPool<kernel_shape=[2,2]>(c) y = Conv(m, v)"
    assert operate(TieConcatScales(), f"{HEAD} {{ {body} }}").sites == 1


def test_concats_that_share_an_input_are_judged_together(operate):
    text = f"""{HEAD} {{ {PAIRS} r = QuantizeLinear(u, f, z) k = DequantizeLinear(r, f, z) {JOINED}
        t = Concat<axis=1>(i, k) d = Conv(c, v) e = Conv(t, v) y = Add(d, e) }}"""
    done = operate(TieConcatScales(), text)
    assert scales(done) == {
        "p": 0.25, "q": 0.5, "r": pytest.approx(0.01), "c_codes": 0.5, "t_codes": 0.25,
    }  # fmt: skip


def test_a_shared_scale_initializer_keeps_its_value_for_others(operate):
    text = f"""{HEAD} {{ {PAIRS} {JOINED} d = Conv(c, v) r = QuantizeLinear(d, a, z)
        y = DequantizeLinear(r, a, z) }}"""
    done = operate(TieConcatScales(), text)
    assert scales(done) == {"p": 0.5, "q": 0.5, "r": 0.25}


PAIR_BEHIND = "r = QuantizeLinear(c, s, z) d = DequantizeLinear(r, s, z)"


@pytest.mark.parametrize(
    "body",
    [
        PAIRS.replace("b, z", "a, z") + JOINED + " y = Conv(c, v)",
        PAIRS + "k = Relu(j)  c = Concat<axis=1>(i, k) y = Conv(c, v)",
        PAIRS + "y = Add(i, j)",
        PAIRS + "c = Concat<axis=1>(i, x) y = Conv(c, v)",
        PAIRS + JOINED + PAIR_BEHIND + " y = Conv(d, v)",
        PAIRS + "y = Concat<axis=1>(i, j)",
        PAIRS + JOINED + " y = Sigmoid(c)",
        PAIRS + JOINED + " h = Neg(v) y = Conv(c, h)",
    ],
    ids=[
        "equal scales", "float input", "add", "graph input", "pair behind", "outputs of a detector",
        "float reader", "float layer",
    ],
)  # fmt: skip
def test_other_pairs_are_left_alone(body, operate):
    done = operate(TieConcatScales(), f"{HEAD} {{ {body} }}")
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs())
