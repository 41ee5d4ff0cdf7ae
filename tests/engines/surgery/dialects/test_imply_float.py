import numpy as np
import pytest

from reptrt.engines.surgery.dialects.imply_float import ImplyFloat, UndoDynamic

TEXT = """net (float[1,4,8,8] x) => (float[1,3,8,8] y) {
    v = DequantizeLinear<axis=0>(w, t, zz)
    c = Conv(x, v)
    q = QuantizeLinear(c, s, z)
    y = DequantizeLinear(q, s, z)
}"""
WEIGHT = {
    "w": np.random.default_rng(0).integers(-127, 128, (3, 4, 1, 1), np.int8),
    "t": np.array([0.01, 0.02, 0.03], np.float32),
    "zz": np.zeros(3, np.int8),
}


@pytest.mark.parametrize(
    ("zero", "step", "low", "high"),
    [
        (np.int8(0), 0.01, -np.inf, np.inf),  # symmetric: clips at no activation's bound
        (np.uint8(0), 0.01, 0, np.inf),  # does a ReLU's work
        (np.int8(-128), 6 / 255, 0, 6),  # ReLU6's
        (np.uint8(100), 0.01, -np.inf, np.inf),
    ],
)
def test_pairs_go_but_the_activation_that_a_grid_stands_for_stays(operate, zero, step, low, high):
    operated = operate(ImplyFloat(), TEXT, s=np.float32(step), z=zero, **WEIGHT)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operated.ops)
    images = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype(np.float32)
    weight = WEIGHT["w"][..., 0, 0] * WEIGHT["t"][:, None]
    expected = np.einsum("oc,nchw->nohw", weight, images).clip(low, high)
    _, after = operated.outputs({"x": images})
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-4)


def test_a_dynamic_product_becomes_the_float_one(operate):
    operated = operate(
        UndoDynamic(),
        """net (float[2,4] x) => (float[2,3] y) {
            q, s, z = DynamicQuantizeLinear(x)
            i = MatMulInteger(q, w, z, wz)
            f = Cast<to=1>(i)
            k = Mul(s, t)
            y = Mul(f, k)
        }""",
        w=np.arange(12, dtype=np.uint8).reshape(4, 3), wz=np.uint8(5), t=np.float32(0.1),
    )  # fmt: skip
    images = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    _, after = operated.outputs({"x": images})
    expected = images @ ((np.arange(12).reshape(4, 3) - 5) * 0.1)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
