from __future__ import annotations

import numpy as np
import pytest

from pipeline.surgery.requantize_selections import RequantizeSelections

HEAD = """g (float[1,2,4,4] x, float[1,2,4,4] u) => (float[1,c,h,w] y)
<float s = {0.0625}, float t = {0.125}, int8 z = {0}>"""
PAIRS = """
    p = QuantizeLinear(x, s, z)  i = DequantizeLinear(p, s, z)
    q = QuantizeLinear(u, s, z)  j = DequantizeLinear(q, s, z)
"""


@pytest.mark.parametrize(
    ("selection", "sites"),
    [
        ("c = Concat<axis=1>(i, j)", 1),
        ("c = MaxPool<kernel_shape=[2,2]>(i)", 1),
        ("b = MaxPool<kernel_shape=[2,2]>(i)  c = Concat<axis=1>(b, b)", 2),
        ("c = Transpose<perm=[0,2,1,3]>(i)", 1),
        ("c = AveragePool<kernel_shape=[2,2]>(i)", 0),
        ("c = Concat<axis=1>(i, x)", 0),
    ],
)
def test_what_selects_codes_is_followed_by_its_own_grid(operate, selection, sites):
    done = operate(RequantizeSelections(), HEAD + "{" + PAIRS + selection + " y = Neg(c) }")
    assert done.sites == sites
    assert done.ops.count("QuantizeLinear") == 1 + ("j" in selection) + sites
    np.testing.assert_array_equal(*done.outputs())


def test_two_grids_and_graph_outputs_are_left_alone(operate):
    other = PAIRS.replace("u, s, z", "u, t, z").replace("q, s, z", "q, t, z")
    concat = "c = Concat<axis=1>(i, j)  y = Neg(c) }"
    assert operate(RequantizeSelections(), HEAD + "{" + other + concat).sites == 0
    last = "y = Concat<axis=1>(i, j) }"
    assert operate(RequantizeSelections(), HEAD + "{" + PAIRS + last).sites == 0


def test_a_selection_that_is_quantized_already_is_left_alone(operate):
    done = operate(
        RequantizeSelections(),
        HEAD
        + "{"
        + PAIRS
        + """c = Concat<axis=1>(i, j)  r = QuantizeLinear(c, s, z)
        y = DequantizeLinear(r, s, z) }""",
    )
    assert done.sites == 0
