from __future__ import annotations

import numpy as np
import onnx
import pytest

from reptrt.engines.surgery import SurgeryError
from reptrt.engines.surgery.cpu.shift_to_uint8 import ShiftToUint8

HEAD = """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float s = {0.0625}, float t = {0.125}, int8 z = {0}, float low = {-0.5}, float high = {0.29}>"""
WIDE = np.linspace(-20, 20, 32, dtype=np.float32).reshape(1, 2, 4, 4)


def codes_and_bounds(done):
    """Zero point of the QuantizeLinear, and the bounds of the integer Clip if there is one."""
    quantize = done.node("QuantizeLinear")
    clips = [n for n in done.graph.nodes if n.op == "Clip"]
    bounds = [int(bound.values) for bound in clips[0].inputs[1:]] if clips else None
    return np.asarray(quantize.inputs[2].values), bounds


@pytest.mark.parametrize(
    ("clip", "bounds"),
    [
        ("a = Identity(x)", None),
        ("a = Relu(x)", [128, 255]),
        ("a = Clip(x, low, high)", [120, 133]),  # -0.5 is code -8, 0.29 rounds to code 5
        ("a = Clip(x, , high)", [0, 133]),
        ("a = Clip(x)", None),
        ("a = Clip(x, low, low)", [120, 120]),
    ],
)
def test_the_codes_are_the_same_and_128_higher(operate, clip, bounds):
    done = operate(
        ShiftToUint8(),
        HEAD + "{" + clip + "  p = QuantizeLinear(a, s, z)  y = DequantizeLinear(p, s, z) }",
    )
    zero_point, found = codes_and_bounds(done)
    assert (zero_point.dtype, int(zero_point)) == (np.uint8, 128)
    assert found == bounds
    for feed in (None, {"x": WIDE}):
        before, after = done.outputs(feed)
        np.testing.assert_array_equal(before, after)


def test_a_relu_that_others_read_stays(operate):
    done = operate(
        ShiftToUint8(),
        HEAD
        + """{ a = Relu(x)  p = QuantizeLinear(a, s, z)  b = DequantizeLinear(p, s, z)
        y = Add(a, b) }""",
    )
    assert "Relu" in done.ops
    assert "Clip" not in done.ops
    np.testing.assert_array_equal(*done.outputs({"x": WIDE}))


def test_every_reader_of_clipped_codes_reads_the_clip(operate):
    done = operate(
        ShiftToUint8(),
        HEAD
        + """{ a = Relu(x)  p = QuantizeLinear(a, s, z)  b = DequantizeLinear(p, s, z)
        c = DequantizeLinear(p, s, z)  y = Add(b, c) }""",
    )
    readers = [n for n in done.graph.nodes if n.op == "DequantizeLinear"]
    assert {n.inputs[0].inputs[0].op for n in readers} == {"Clip"}
    np.testing.assert_array_equal(*done.outputs({"x": WIDE}))


def test_weights_keep_their_int8_codes(operate):
    done = operate(
        ShiftToUint8(),
        """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float s = {0.0625}, int8 z = {0}, float[2] v, int8[2] zs, int8[2,2,1,1] w>
        { p = QuantizeLinear(x, s, z)  a = DequantizeLinear(p, s, z)
          b = DequantizeLinear<axis=0>(w, v, zs)  y = Conv(a, b) }""",
        v=np.float32([0.1, 0.2]),
        zs=np.int8([0, 0]),
        w=np.int8([[[[3]], [[-7]]], [[[127]], [[1]]]]),
    )
    weight = next(n for n in done.graph.nodes if n.outputs[0].name == "b")
    assert weight.inputs[0].values.dtype == np.int8
    np.testing.assert_array_equal(*done.outputs())


def test_codes_on_two_grids_are_refused(operate):
    with pytest.raises(SurgeryError, match="another grid; give the pair one scale"):
        operate(
            ShiftToUint8(),
            HEAD + "{ p = QuantizeLinear(x, s, z)  y = DequantizeLinear(p, t, z) }",
        )


def test_a_clip_with_computed_bounds_stays_in_front(operate):
    done = operate(
        ShiftToUint8(),
        HEAD
        + """{ m = ReduceMax<keepdims=0>(x)  a = Clip(x, low, m)  p = QuantizeLinear(a, s, z)
        y = DequantizeLinear(p, s, z) }""",
    )
    assert isinstance(done.after, onnx.ModelProto)
    assert [n.inputs[0].name for n in done.graph.nodes if n.op == "Clip"] == ["x"]
    np.testing.assert_array_equal(*done.outputs({"x": WIDE}))


def test_a_bound_between_two_codes_rounds_as_onnx_runtime_does(operate):
    done = operate(
        ShiftToUint8(),
        HEAD.replace("0.29", "0.35").replace("0.125", "0.1")
        + "{ a = Clip(x, low, high)  p = QuantizeLinear(a, t, z)  y = DequantizeLinear(p, t, z) }",
    )
    # In float32 0.35 / 0.1 is 3.5, which rounds to 4; in float64 it is less.
    assert codes_and_bounds(done)[1] == [123, 132]
    np.testing.assert_array_equal(*done.outputs({"x": WIDE}))


def test_a_relu_that_is_an_output_of_the_graph_stays(operate):
    done = operate(
        ShiftToUint8(),
        HEAD.replace("=> (float[1,2,4,4] y)", "=> (float[1,2,4,4] a, float[1,2,4,4] y)")
        + "{ a = Relu(x)  p = QuantizeLinear(a, s, z)  y = DequantizeLinear(p, s, z) }",
    )
    assert done.ops == ["Relu", "QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_array_equal(*done.outputs({"x": WIDE}))


@pytest.mark.parametrize(
    "grid", ["(x, s, n)", "(x, v, zs)", "(x, s, u)"], ids=["zero point", "channels", "uint8"]
)
def test_other_grids_keep_their_codes(operate, grid):
    done = operate(
        ShiftToUint8(),
        HEAD.replace("<", "<float[2] v, int8[2] zs, int8 n = {-100}, uint8 u = {3}, ", 1)
        + f"{{ p = QuantizeLinear<axis=1>{grid}"
        + f" y = DequantizeLinear<axis=1>{grid.replace('x', 'p')} }}",
        v=np.float32([0.1, 0.2]),
        zs=np.int8([0, 0]),
    )
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs({"x": WIDE}))


def test_codes_that_another_operator_reads_are_refused(operate):
    with pytest.raises(SurgeryError, match="Transpose 'q': reads the codes of QuantizeLinear 'p'"):
        operate(
            ShiftToUint8(),
            HEAD
            + "{ p = QuantizeLinear(x, s, z)  q = Transpose(p)  y = DequantizeLinear(q, s, z) }",
        )
