from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.repair.drop_no_ops import DropNoOps

CONSTANTS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "row": np.ones((1, 1, 1), np.float32),
    "no_pads": np.zeros(4, np.int64),
    "some_pads": np.array([0, 1, 0, 0]),
    "from_start": np.array([0]),
    "from_one": np.array([1]),
    "to_end": np.array([2**63 - 1]),
    "to_start": np.array([-(2**63)]),
    "backwards": np.array([-1]),
    "last": np.array([-1]),
    "axis": np.array([1]),
    "shape": np.array([2, 3]),
    "turned": np.array([3, 2]),
    "largest": np.float32(np.finfo(np.float32).max),
    "lowest": np.float32(np.finfo(np.float32).min),
    "off": np.array(False),
    "rate": np.float32(0.5),
}
NO_OPS = [
    "Identity(a)",
    "Dropout(a)",
    "Dropout(a, rate, off)",
    "Cast<to=1>(a)",
    "Reshape(a, shape)",
    "Flatten<axis=1>(a)",
    "Transpose<perm=[0,1]>(a)",
    "Pad(a, no_pads)",
    "Slice(a, from_start, to_end, axis)",
    "Clip(a)",
    "Clip(a, lowest, largest)",
    "Concat<axis=1>(a)",
    "Expand(a, shape)",
    "Add(a, zero)",
    "Sub(a, zero)",
    "Mul(a, one)",
    "Div(a, one)",
]
WORKERS = [
    "Cast<to=10>(a)",
    "Reshape(a, turned)",
    "Transpose<perm=[1,0]>(a)",
    "Transpose(a)",
    "Pad(a, some_pads)",
    "Slice(a, from_one, to_end, axis)",
    "Slice(a, last, to_start, axis, backwards)",
    "Clip(a, zero)",
    "Add(a, one)",
    "Mul(a, row)",
    "Mul(a, zero)",
    "Sub(a, one)",
]


def used(text: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in CONSTANTS.items() if name in text}


@pytest.mark.parametrize("expression", NO_OPS)
def test_what_does_nothing_is_dropped(expression, operate):
    text = f"g (float[2,3] x) => (float[2,3] y) {{ a = Relu(x)  b = {expression}  y = Neg(b) }}"
    done = operate(DropNoOps(), text, **used(expression))
    assert (done.sites, done.ops) == (1, ["Relu", "Neg"])
    np.testing.assert_array_equal(*done.outputs())


@pytest.mark.parametrize("expression", WORKERS)
def test_what_does_something_is_left_alone(expression, operate):
    text = f"g (float[2,3] x) => (y) {{ a = Relu(x)  b = {expression}  y = Neg(b) }}"
    kind = "float16" if "to=10" in expression else "float"
    rank = 3 if "row" in expression else 2
    dims = ",".join(["N"] * rank)
    done = operate(DropNoOps(), text.replace("(y)", f"({kind}[{dims}] y)"), **used(expression))
    assert (done.sites, len(done.ops)) == (0, 3)


def test_a_graph_output_keeps_its_name_and_other_readers_their_value(operate):
    done = operate(
        DropNoOps(),
        "g (float[2] x) => (float[2] y, float[2] n) { a = Relu(x)  y = Identity(a)  n = Neg(a) }",
    )
    assert (done.sites, done.ops) == (1, ["Relu", "Neg"])
    assert [output.name for output in done.graph.outputs] == ["y", "n"]
    np.testing.assert_array_equal(*done.outputs())


def test_an_identity_between_graph_input_and_output_stays(operate):
    done = operate(DropNoOps(), "g (float[2] x) => (float[2] y) { y = Identity(x) }")
    assert (done.sites, done.ops) == (0, ["Identity"])


def test_two_outputs_of_one_tensor_stay_two(operate):
    done = operate(
        DropNoOps(),
        "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)  z = Identity(y) }",
    )
    assert done.ops == ["Relu", "Identity"]


def test_a_cast_to_float_and_back_to_half_disappears(operate):
    done = operate(
        DropNoOps(),
        """g (float16[2] x) => (float16[2] y) {
            a = Relu(x)
            b = Cast<to=1>(a)
            c = Cast<to=10>(b)
            y = Neg(c)
        }""",
    )
    assert done.ops == ["Relu", "Neg"]
    np.testing.assert_array_equal(*done.outputs())


def test_a_cast_to_half_and_back_to_float_stays_because_it_rounds(operate):
    done = operate(
        DropNoOps(),
        "g (float[2] x) => (float[2] y) { b = Cast<to=10>(x)  c = Cast<to=1>(b)  y = Neg(c) }",
    )
    assert done.ops == ["Cast", "Cast", "Neg"]


def test_a_dropout_whose_mask_is_read_stays(operate):
    done = operate(
        DropNoOps(),
        "g (float[2] x) => (float[2] y, bool[2] m) { a, m = Dropout(x)  y = Neg(a) }",
    )
    assert done.ops == ["Dropout", "Neg"]


def test_a_dynamic_reshape_to_an_unknown_shape_stays(operate):
    done = operate(
        DropNoOps(),
        "g (float[N,4] x, int64[2] s) => (float[A,B] y) { a = Reshape(x, s)  y = Neg(a) }",
    )
    assert done.ops == ["Reshape", "Neg"]
