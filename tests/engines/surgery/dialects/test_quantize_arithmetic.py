import numpy as np
import pytest

from reptrt.engines.surgery.dialects.quantize_arithmetic import QuantizeArithmetic

IMAGES = {"x": np.random.default_rng(0).uniform(-3, 3, (1, 4, 8, 8)).astype(np.float32)}
NET = "net (float[1,4,8,8] x) => (float[1,4,8,8] y) "


@pytest.mark.parametrize(
    ("body", "values", "ops"),
    [
        ("d = Div(x, s) r = Round(d) c = Clip(r, l, h) y = Mul(c, s)", (-128, 127, 0), []),
        ("d = Mul(x, i) r = Round(d) c = Clip(r, l, h) y = Mul(c, s)", (-128, 127, 0), []),
        ("d = Div(x, s) c = Clip(d, l, h) r = Round(c) y = Mul(s, r)", (-7, 7, 0), ["Clip"]),
        (
            "d = Div(x, s) a = Max(d, l) c = Min(a, h) r = Round(c) y = Mul(r, s)",
            (-128, 127, 0),
            [],
        ),
        (
            "d = Div(x, s) r = Round(d) a = Add(r, z) c = Clip(a, l, h) b = Sub(c, z) y = Mul(b, s)",
            (0, 255, 100),
            [],
        ),
        (
            "d = Div(x, s) a = Add(d, z) c = Clip(a, l, h) r = Round(c) b = Sub(r, z) y = Mul(b, s)",
            (0, 15, 3),
            ["Clip"],
        ),
        ("d = Div(x, s) r = Round(d) c = Clip(r, l, h) y = Div(c, i)", (-100, 155, 0), []),
    ],
)
def test_every_spelling_becomes_one_pair_with_the_same_values(operate, body, values, ops):
    low, high, zero = map(np.float32, values)
    step = np.float32(0.03125)
    given = {"s": step, "i": 1 / step, "l": low, "h": high, "z": zero}
    used = {
        name: value for name, value in given.items() if f"{name})" in body or f"{name}," in body
    }
    operated = operate(QuantizeArithmetic(), f"{NET}{{ {body} }}", **used)
    assert operated.ops == [*ops, "QuantizeLinear", "DequantizeLinear"]
    before, after = operated.outputs(IMAGES)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(x, s) r = Round(d) c = Clip(r, l, w) y = Mul(c, s)",  # 16 bits
        "d = Div(x, s) r = Round(d) c = Clip(r, l, h) y = Mul(c, t)",  # another scale
        "d = Div(x, s) r = Round(d) c = Clip(r, h, w) y = Mul(c, s)",  # no code for 0
        "d = Div(x, s) r = Round(d) y = Mul(r, s)",  # no bounds
        "r = Round(x) y = Clip(r, l, h)",  # no scale
        "d = Div(x, s) a = Add(d, e) r = Round(a) c = Clip(r, l, h) y = Mul(c, s)",  # shifted
    ],
)
def test_arithmetic_that_is_no_8_bit_grid_stays(operate, body):
    given = {"s": 0.03, "t": 0.04, "l": -128.0, "h": 127.0, "w": 32767.0, "e": 0.5}
    used = {n: np.float32(v) for n, v in given.items() if f"{n})" in body or f"{n}," in body}
    operated = operate(QuantizeArithmetic(), f"{NET}{{ {body} }}", **used)
    assert operated.sites == 0
    assert "Round" in operated.ops


def test_each_channel_of_a_weight_keeps_its_scale(operate):
    scale = np.array([0.01, 0.02, 0.04, 0.05], np.float32).reshape(4, 1, 1, 1)
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)
    operated = operate(
        QuantizeArithmetic(),
        f"{NET}{{ d = Div(w, s) r = Round(d) c = Clip(r, l, h) v = Mul(c, s) y = Conv(x, v) }}",
        w=weight, s=scale, l=np.float32(-127), h=np.float32(127),
    )  # fmt: skip
    assert operated.node("DequantizeLinear").attrs["axis"] == 0
    before, after = operated.outputs(IMAGES)
    np.testing.assert_allclose(before, after, atol=1e-5)
