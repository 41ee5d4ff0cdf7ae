import numpy as np
import pytest

from reptrt.engines.surgery.dialects.lift_codes import LiftCodes

IMAGES = {"x": np.random.default_rng(0).uniform(-3, 3, (1, 4, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize(
    "body",
    [
        "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(q) y = DequantizeLinear(m, s, z)",
        "m = Transpose<perm=[0,2,3,1]>(q) n = Flatten(m) y = DequantizeLinear(n, s, z)",
        "m = Clip(q, low, high) y = DequantizeLinear(m, s, z)",
        "m = Clip(q, low) y = DequantizeLinear(m, s, z)",
        "m = Relu(q) y = DequantizeLinear(m, s, z)",
        'm = Pad<mode="reflect">(q, pads) y = DequantizeLinear(m, s, z)',
        "m = Pad(q, pads, high) y = DequantizeLinear(m, s, z)",
        "m = Pad(q, pads) y = DequantizeLinear(m, s, z)",
        "m = MaxPool<kernel_shape=[1,1]>(q) n = Concat<axis=1>(q, m) y = DequantizeLinear(n, s, z)",
    ],
)
def test_what_moves_or_clips_codes_works_on_floats_and_the_values_stay(operate, body):
    text = f"net (float[1,4,8,8] x) => (float[] y) {{ q = QuantizeLinear(x, s, z) {body} }}"
    text = text.replace("float[] y", "float[a,b] y" if "Flatten" in body else "float[a,b,c,d] y")
    operated = operate(
        LiftCodes(), text, s=np.float32(0.02), z=np.int8(-10), low=np.int8(-32), high=np.int8(31),
        pads=np.array([0, 0, 1, 2, 0, 0, 0, 1]),
    )  # fmt: skip
    before, after = operated.outputs(IMAGES)
    np.testing.assert_array_equal(before, after)
    for node in operated.graph.nodes:  # codes go from Q to DQ alone
        if node.op == "QuantizeLinear":
            assert {reader.op for reader in node.outputs[0].outputs} == {"DequantizeLinear"}


def test_codes_of_two_grids_stay_where_they_are(operate):
    operated = operate(
        LiftCodes(),
        """net (float[1,4,8,8] x) => (float[1,8,8,8] y) {
            q = QuantizeLinear(x, s, z)
            p = QuantizeLinear(x, t, z)
            c = Concat<axis=1>(q, p)
            y = DequantizeLinear(c, s, z)
        }""",
        s=np.float32(0.02),
        t=np.float32(0.05),
        z=np.int8(0),
    )
    assert operated.sites == 0


def test_codes_are_ranked_as_their_values_are(operate):
    text = """net (float[1,4,8,8] x) => (int64[1,1,8,8] y) {
        q = QuantizeLinear(x, s, z) y = ArgMax<axis=1>(q) }"""
    operated = operate(LiftCodes(), text, s=np.float32(0.5), z=np.int8(-10))
    before, after = operated.outputs(IMAGES)
    np.testing.assert_array_equal(before, after)
    assert operated.ops == ["QuantizeLinear", "DequantizeLinear", "ArgMax"]


def test_values_between_codes_are_rounded_again(operate):
    text = """net (float[1,4,8,8] x) => (float[1,4,16,16] y) { q = QuantizeLinear(x, s, z)
        m = Resize<mode="linear">(q, , scales) y = DequantizeLinear(m, s, z) }"""
    scales = np.array([1, 1, 2, 2], np.float32)
    operated = operate(LiftCodes(), text, s=np.float32(0.02), z=np.int8(-10), scales=scales)
    before, after = operated.outputs(IMAGES)
    assert np.abs(before - after).max() <= 0.02 + 1e-6  # ONNX Runtime cuts digits off
    assert operated.ops[-4:] == ["DequantizeLinear", "Resize", "QuantizeLinear", "DequantizeLinear"]
