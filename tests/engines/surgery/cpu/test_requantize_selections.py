from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.cpu.requantize_selections import RequantizeSelections

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
        ("k = Constant<value_ints=[1,4,2,4]>()  c = Reshape(i, k)", 1),
        ("c = AveragePool<kernel_shape=[2,2]>(i)", 0),
        ("a = Relu(i)  c = MaxPool<kernel_shape=[2,2]>(a)", 0),
        ("c, d = Split<axis=1, num_outputs=2>(i)", 0),
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


def test_the_pair_repeats_a_zero_point_that_is_not_0(operate):
    head = HEAD.replace("int8 z = {0}", "int8 z = {-100}")
    done = operate(
        RequantizeSelections(),
        head + "{" + PAIRS + "c = Transpose<perm=[0,2,1,3]>(i)  y = Neg(c) }",
    )
    assert done.sites == 1
    x = np.linspace(-1, 12, 32, dtype=np.float32).reshape(1, 2, 4, 4)  # codes -116 to 92
    before, after = done.outputs({"x": x, "u": x})
    assert np.unique(before).size == 32
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("grid", ["(x, v, zs)", "(x, s)"], ids=["channels", "no zero point"])
def test_grids_of_channels_and_without_a_zero_point_are_left_alone(operate, grid):
    done = operate(
        RequantizeSelections(),
        HEAD.replace("<", "<float[2] v, int8[2] zs, ", 1)
        + f"{{ p = QuantizeLinear<axis=1>{grid}  i = DequantizeLinear<axis=1>{grid.replace('x', 'p')}"
        + "  c = Transpose<perm=[0,2,1,3]>(i)  y = Neg(c) }",
        v=np.float32([0.1, 0.2]),
        zs=np.int8([0, 0]),
    )
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs())
